//! Logins over ssh to a machine that systemd runs, as people have them: through sshd, PAM and
//! logind, with a terminal if one is wanted.

use crate::nspawn::Corner;
use crate::programs::works;
use crate::skip::skip_or_fail;
use crate::wait::until;
use serde_json::Value;

/// An sshd in one corner of a machine, which lets in root and the machine's users.
pub struct Ssh<'a> {
    corner: &'a Corner<'a>,
    port: u16,
}

impl<'a> Ssh<'a> {
    /// Starts an sshd in this corner. Returns `None`, after reporting the skip, if sshd or ssh is
    /// missing.
    #[track_caller]
    pub fn new(corner: &'a Corner<'a>) -> Option<Ssh<'a>> {
        // Without a host key sshd says so and ends, and it has no option that only prints its
        // version.
        if !works("sh", &["-c", "PATH=$PATH:/usr/sbin:/sbin; command -v sshd"])
            || !works("ssh", &["-V"])
        {
            skip_or_fail("sshd", "sshd and ssh");
            return None;
        }
        let port = corner.port + 9;
        let (machine, key, host) = (corner.machine, corner.path("key"), corner.path("host"));
        for file in [&key, &host] {
            machine.sh(&format!("ssh-keygen -q -t ed25519 -N '' -f {file}"));
        }
        let options = [
            format!("Port={port}"),
            "ListenAddress=127.0.0.1".to_owned(),
            format!("HostKey={host}"),
            format!("AuthorizedKeysFile={key}.pub"),
            "StrictModes=no".to_owned(),
            "PermitRootLogin=yes".to_owned(),
            "UsePAM=yes".to_owned(),
            "PidFile=none".to_owned(),
        ];
        let options: Vec<String> = options.iter().map(|option| format!("-o {option}")).collect();
        machine.sh(&format!(
            "mkdir -p /run/sshd && systemd-run --quiet --unit={} $(command -v sshd) -D -e -f /dev/null {}",
            corner.mark("sshd"),
            options.join(" ")
        ));
        let ssh = Ssh { corner, port };
        until("sshd lets in", || machine.try_sh(&ssh.login("root", "", "true")).1);
        Some(ssh)
    }

    /// Returns the shell command with which a user logs in and runs a script; `flags` are
    /// additional options of ssh.
    pub fn login(&self, user: &str, flags: &str, script: &str) -> String {
        format!(
            "ssh {flags} -n -p {} -i {} -o BatchMode=yes -o LogLevel=ERROR -o StrictHostKeyChecking=no \
             -o UserKnownHostsFile=/dev/null {user}@127.0.0.1 '{script}'",
            self.port,
            self.corner.path("key")
        )
    }

    /// Runs a script in a login and waits until the login is over, except for what logind keeps of
    /// it; fails the test if the script fails.
    #[track_caller]
    pub fn sh(&self, user: &str, script: &str) {
        self.corner.machine.sh(&self.login(user, "", script));
        self.is_over(user);
    }

    /// Runs a script in a login, waits until the login is over, and returns the JSON document that
    /// the script has written.
    #[track_caller]
    pub fn json(&self, user: &str, script: &str) -> Value {
        let document = self.corner.machine.json(&self.login(user, "", script));
        self.is_over(user);
        document
    }

    /// Waits until the user's last login is over.
    #[track_caller]
    pub fn is_over(&self, user: &str) {
        let process = format!("pgrep -u {user} -f '[s]shd: {user}'");
        until(&format!("{user}: the login is over"), || !self.corner.machine.try_sh(&process).1);
    }
}
