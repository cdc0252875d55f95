//! What clap knows of an argument, in the words in which completion, the manual and HTTP ask for
//! it.

use clap::{Arg, ArgGroup, Command};

pub fn takes_value(argument: &Arg) -> bool {
    argument.get_num_args().is_some_and(|count| count.takes_values())
}

/// Reports whether an option may also stand without its value.
pub fn may_do_without(argument: &Arg) -> bool {
    argument.get_num_args().is_some_and(|count| count.min_values() == 0)
}

/// Reports whether an argument takes more than one value.
pub fn is_list(argument: &Arg) -> bool {
    argument.get_num_args().is_some_and(|count| count.max_values() > 1)
}

/// Reports whether two arguments of a command cannot be given together.
pub fn exclude(command: &Command, one: &Arg, other: &Arg) -> bool {
    let names = |one: &Arg, other: &Arg| {
        let conflicts = command.get_arg_conflicts_with(one);
        conflicts.iter().any(|conflict| conflict.get_id() == other.get_id())
    };
    let one_of = |group: &ArgGroup| {
        let has = |argument: &Arg| group.get_args().any(|id| id == argument.get_id());
        !group.clone().is_multiple() && has(one) && has(other) && one.get_id() != other.get_id()
    };
    names(one, other) || names(other, one) || command.get_groups().any(one_of)
}
