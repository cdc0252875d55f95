//! Transient systemd scopes, in which native services start if a systemd manager answers: the
//! processes of a start stay in its scope, and outlive the unit or the login that gpuctl runs in.

use super::host;
use super::process::{self, Process};
use crate::error::Result;
use crate::model::Pid;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// A scope that a systemd manager can be asked to make, under a unique name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    pub name: String,
    /// The folder in which a user's own manager listens; `None` for the system's manager.
    user_folder: Option<PathBuf>,
}

impl Scope {
    /// Returns a scope for a start of a service, or `None` if no manager would keep it: none can be
    /// reached from this PID namespace, or the user's manager ends with the login.
    pub fn offered(service: &str) -> Result<Option<Scope>> {
        let is_root = rustix::process::geteuid().is_root();
        let user_folder = (!is_root).then(folder_of_user);
        let folder = user_folder.as_deref().unwrap_or(Path::new("/run"));
        let is_kept = user_folder.is_none() || lingers(&host::user());
        if !is_kept || !listens(&folder.join("systemd/private")) || !sees_our_numbers() {
            return Ok(None);
        }
        let name = format!("gpuctl-{service}-{}.scope", host::random_hex::<4>()?);
        Ok(Some(Scope { name, user_folder }))
    }

    #[cfg(test)]
    pub fn of_test(name: &str) -> Scope {
        Scope { name: name.to_owned(), user_folder: None }
    }

    /// Returns the arguments with which `systemd-run` moves itself into the scope and becomes a
    /// program.
    pub fn arguments(&self) -> Vec<String> {
        let user = self.user_folder.as_ref().map(|_| "--user".to_owned());
        let unit = format!("--unit={}", self.name);
        let rest = ["--scope", "--quiet", "--collect", "--no-ask-password", &unit, "--"];
        user.into_iter().chain(rest.map(str::to_owned)).collect()
    }

    /// Returns the variable by which `systemd-run` finds a user's manager, or `None` for the
    /// system's manager. A login of the user sets it already, but cron does not.
    pub fn variable(&self) -> Option<(&'static str, &Path)> {
        self.user_folder.as_deref().map(|folder| ("XDG_RUNTIME_DIR", folder))
    }
}

fn folder_of_user() -> PathBuf {
    PathBuf::from(format!("/run/user/{}", rustix::process::geteuid()))
}

/// Returns the folder in which the current user's own manager listens, or `None` if none does.
pub fn user_folder() -> Option<PathBuf> {
    Some(folder_of_user()).filter(|folder| listens(&folder.join("systemd/private")))
}

/// Reports whether one of these control groups (lines of /proc/PID/cgroup) is a scope or below it.
pub fn is_in(control_groups: &str, scope: &str) -> bool {
    let paths = control_groups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.flat_map(|path| path.split('/')).any(|part| part == scope)
}

/// Returns the scope, named in these control groups (lines of /proc/PID/cgroup), in which gpuctl
/// has started a service.
pub fn of_service<'a>(control_groups: &'a str, service: &str) -> Option<&'a str> {
    let paths = control_groups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.flat_map(|path| path.split('/')).find(|part| {
        let rest = part.strip_prefix("gpuctl-").and_then(|part| part.strip_prefix(service));
        let token = rest.and_then(|rest| rest.strip_prefix('-')?.strip_suffix(".scope"));
        token.is_some_and(|token| token.len() == 8 && token.bytes().all(|b| b.is_ascii_hexdigit()))
    })
}

/// Reports whether a user's manager stays when the user has logged out.
fn lingers(user: &str) -> bool {
    Path::new("/var/lib/systemd/linger").join(user).exists()
}

fn listens(socket: &Path) -> bool {
    socket.metadata().is_ok_and(|meta| meta.file_type().is_socket())
}

/// Reports whether a process has the same PID for gpuctl, for the manager and in /proc. The manager
/// is told which PID is to be in the scope, and in another PID namespace that number belongs to a
/// stranger.
fn sees_our_numbers() -> bool {
    let first = Process::of(1).is_some_and(|first| first.name == "systemd");
    first && process::depth(std::process::id() as Pid) == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_one_whole_part_of_a_path() {
        let scope = "gpuctl-llm-0badcafe.scope";
        assert!(is_in("0::/system.slice/gpuctl-llm-0badcafe.scope\n", scope));
        assert!(is_in("1:name=systemd:/x\n0::/a/gpuctl-llm-0badcafe.scope/below\n", scope));
        assert!(!is_in("0::/system.slice/my-gpuctl-llm-0badcafe.scope\n", scope));
        assert!(!is_in("0::/system.slice/gpuctl-llm-0badcafe.scope.d\n", scope));
        assert!(!is_in("1:name=gpuctl-llm-0badcafe.scope:/\n", scope));
        assert!(!is_in("", scope));
    }

    #[test]
    fn a_services_scope_has_its_whole_name_and_a_token() {
        let scope = "gpuctl-llm-0badcafe.scope";
        let groups = format!("1:name=systemd:/x\n0::/system.slice/{scope}/below\n");
        assert_eq!(of_service(&groups, "llm"), Some(scope));
        assert_eq!(
            of_service("0::/system.slice/gpuctl-llm-0badcafe-0badcafe.scope\n", "llm"),
            None
        );
        assert_eq!(of_service("0::/system.slice/gpuctl-my-llm-0badcafe.scope\n", "llm"), None);
        assert_eq!(of_service("0::/system.slice/llm.service\n", "llm"), None);
    }

    #[test]
    fn the_manager_is_asked_for_the_scope_and_nothing_is_said() {
        let system = Scope::of_test("gpuctl-a-1.scope");
        let whole = "--scope --quiet --collect --no-ask-password --unit=gpuctl-a-1.scope --";
        assert_eq!(system.arguments().join(" "), whole);
        assert_eq!(system.variable(), None);
        let folder = PathBuf::from("/run/user/1000");
        let user = Scope { user_folder: Some(folder.clone()), ..system };
        assert_eq!(user.arguments().join(" "), format!("--user {whole}"));
        assert_eq!(user.variable(), Some(("XDG_RUNTIME_DIR", folder.as_path())));
    }

    #[test]
    fn no_unit_looks_after_what_is_in_a_scope() {
        let user = "0::/user.slice/user-1000.slice/user@1000.service/app.slice";
        assert_eq!(process::unit_of(&format!("{user}/gpuctl-a-1.scope\n")), None);
        assert_eq!(process::unit_of(&format!("{user}/b.service\n")), Some("b.service"));
        assert_eq!(process::unit_of("0::/system.slice/b.service/below\n"), Some("b.service"));
    }
}
