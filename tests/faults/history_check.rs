//! Judges the history of a lock: what its clients wrote to one file, one line for each event. Each
//! line is one write at the file's end, so that the lines are in the order of time. `check` is a
//! pure function and is tested with forged histories.
//!
//! A line is `SECONDS KIND WHO REST`. A holder writes only while it really holds the lock, so that
//! two holders that overlap in the history have overlapped.

use std::collections::{HashMap, HashSet};

/// What happened in a history that breaks no promise, in numbers.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Proof {
    pub entries: usize,
    pub killed: usize,
    /// Holders that were overtaken, by a client with a higher fence, because their time was over or
    /// the lock had been deleted.
    pub overtaken: usize,
}

/// The right by which a client is inside.
#[derive(Clone, Copy, PartialEq)]
enum Right {
    /// `gpuctl run`: whatever happens to the lock, the next client waits until the command has
    /// ended.
    Run,
    /// `lock acquire`: until this time in seconds since boot, unless the lock is deleted. Nobody
    /// can end a client that goes on for longer, which is what the fence is for.
    Until(f64),
}

struct Inside {
    right: Right,
    fence: u64,
    /// Whether the lock has been deleted since this client was last known to hold it.
    is_forgotten: bool,
}

/// Resolution in seconds of the clock that stamps the lines.
const TICK: f64 = 0.01;

/// Returns what a history proves, or an error that names the promise that it breaks. `expected` are
/// the clients that must have entered, because nothing kept them from it.
pub fn check(history: &str, expected: &HashSet<String>) -> Result<Proof, String> {
    let mut proof = Proof::default();
    let mut inside: HashMap<&str, Inside> = HashMap::new();
    let (mut seen, mut highest) = (HashSet::new(), 0);
    // From the line before a deletion to the line after it, any holder may have lost the lock.
    let (mut is_going, mut last_gone) = (false, f64::MIN);
    for line in history.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<f64>().ok());
        let fault = |what: &str| Err(format!("{what}: {line}"));
        let (Some(time), [_, kind, who, rest @ ..]) = (number(0), words.as_slice()) else {
            return fault("no line of a history");
        };
        match (*kind, rest) {
            ("enter", [fence, rest @ ..]) => {
                let Ok(fence) = fence.parse::<u64>() else { return fault("no fence") };
                if fence <= highest {
                    return fault(&format!("the fence does not rise above {highest}"));
                }
                highest = fence;
                for (other, earlier) in &inside {
                    let may_be_overtaken = match earlier.right {
                        Right::Run => false,
                        Right::Until(end) => earlier.is_forgotten || time + TICK >= end,
                    };
                    if !may_be_overtaken {
                        return fault(&format!("{other} is inside, with fence {}", earlier.fence));
                    }
                }
                proof.overtaken += inside.len();
                inside.clear();
                let (right, known) = match (rest, number(5), number(6)) {
                    (["run"], ..) => (Right::Run, time),
                    (["until", _, _], Some(end), Some(known)) => (Right::Until(end), known),
                    _ => return fault("no right to enter"),
                };
                if !seen.insert((*who).to_owned()) {
                    return fault("twice the same");
                }
                proof.entries += 1;
                let is_forgotten = is_going || known <= last_gone + TICK;
                inside.insert(who, Inside { right, fence, is_forgotten });
            }
            // A client that was overtaken leaves late.
            ("leave", []) if seen.contains(*who) => drop(inside.remove(who)),
            // This line is written before the kill: from now on the client may be gone.
            ("kill", []) => {
                proof.killed += 1;
                inside.remove(who);
            }
            ("forget" | "forgotten", []) => {
                (is_going, last_gone) = (*kind == "forget", time);
                inside.values_mut().for_each(|holder| holder.is_forgotten = true);
            }
            ("clash", []) => return fault("the kernel's lock is another's"),
            _ => return fault("no line of a history"),
        }
    }
    if let Some((who, _)) = inside.iter().find(|(_, holder)| holder.right == Right::Run) {
        return Err(format!("{who} has neither left nor been killed"));
    }
    match expected.iter().find(|who| !seen.contains(*who)) {
        Some(who) => Err(format!("{who} was not killed and never got in")),
        None => Ok(proof),
    }
}

#[track_caller]
fn judged(history: &str) -> Result<Proof, String> {
    let expected = ["a", "b"].map(str::to_owned).into();
    check(&history.replace("; ", "\n"), &expected)
}

#[test]
fn a_history_that_is_as_promised_is_accepted() {
    for (name, history, entries, killed, overtaken) in [
        ("one after the other", "1 enter a 1 run; 2 leave a; 3 enter b 2 run; 4 leave b", 2, 0, 0),
        ("fences leave gaps", "1 enter b 3 run; 2 leave b; 2 enter a 9 run; 4 leave a", 2, 0, 0),
        ("one is killed", "1 enter a 1 run; 2 kill a; 3 enter b 2 run; 4 leave b", 2, 1, 0),
        ("time is over", "1 enter a 1 until 2 1; 2 enter b 2 run; 3 leave b; 4 leave a", 2, 0, 1),
        (
            "deleted",
            "1 enter a 1 until 9 1; 2 forget -; 2 forgotten -; 2 enter b 2 run; 3 leave a; 4 leave b",
            2,
            0,
            1,
        ),
        (
            "deleted while it came",
            "1 forget -; 1 enter a 1 until 9 1; 1 forgotten -; 2 enter b 2 run; 3 leave b",
            2,
            0,
            1,
        ),
        (
            "deleted before it wrote",
            "2 forget -; 2 forgotten -; 3 enter a 1 until 9 1; 4 enter b 2 run; 5 leave b",
            2,
            0,
            1,
        ),
        ("left to its time", "1 enter a 1 run; 2 leave a; 2 enter b 2 until 5 2", 2, 0, 0),
    ] {
        let proof = Proof { entries, killed, overtaken };
        assert_eq!(judged(history), Ok(proof), "{name}");
    }
}

#[test]
fn a_history_that_breaks_a_promise_is_rejected() {
    for (name, history, why) in [
        ("overlap", "1 enter a 1 run; 2 enter b 2 run; 3 leave a; 4 leave b", "a is inside"),
        ("within the time", "1 enter a 1 until 3 1; 2 enter b 2 run; 4 leave b", "a is inside"),
        ("a run that was deleted", "1 enter a 1 run; 2 forget -; 3 enter b 2 run", "a is inside"),
        (
            "deleted before",
            "1 forget -; 1 forgotten -; 2 enter a 1 until 9 2; 3 enter b 2 run; 4 leave b",
            "a is inside",
        ),
        ("another was killed", "1 enter a 1 run; 2 kill b; 3 enter b 2 run", "a is inside"),
        ("the same fence", "1 enter a 1 run; 2 leave a; 3 enter b 1 run; 4 leave b", "not rise"),
        ("a lower fence", "1 enter a 2 run; 2 leave a; 3 enter b 1 run; 4 leave b", "not rise"),
        ("no leave", "1 enter a 1 run; 2 leave a; 3 enter b 2 run", "b has neither left"),
        ("kept out", "1 enter a 1 run; 2 leave a", "b was not killed and never got in"),
        ("twice", "1 enter a 1 run; 2 leave a; 3 enter a 2 run", "twice the same"),
        ("the witness", "1 enter a 1 run; 1 clash b", "the kernel's lock"),
        ("a leave of nobody", "1 leave c", "no line of a history"),
        ("a line cut short", "1 ent", "no line of a history"),
        ("lines mixed", "1 enter a 1 run1 leave b", "no right to enter"),
    ] {
        let told = judged(history).expect_err(name);
        assert!(told.contains(why), "{name}: {told}");
    }
}
