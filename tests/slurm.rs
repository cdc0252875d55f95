//! Tests of `examples/slurm`: jobs of a real Slurm on two nodes, each with a card and services of
//! its own, and one Redis for both.

use rig::page::repository;
use rig::{Card, Corner, Machine, skip_or_fail, until, works};
use std::fs;

/// Address of the machine, which both nodes and their controller use.
const ADDRESS: &str = "10.77.0.1";

/// A node: its name, and the corner of the machine in which its ports and its card are.
struct Node<'a> {
    name: &'static str,
    corner: Corner<'a>,
}

impl Node<'_> {
    fn card(&self) -> &Card {
        &self.corner.card
    }

    /// Configures the node: a chat model and a voice for the phase `talk`, and for `video`, which
    /// jobs of the partition `phase-video` need, the voice and a video model.
    fn configure(&self, redis: u16) {
        let corner = &self.corner;
        let service = |name: &str, n: u16, vram: u32, phases: &str| {
            format!(
                "[services.{name}]\ntype = \"native\"\nvram_mb = {vram}\nphases = [{phases}]\nstart = 'exec {}'\n\
                 health = \"http://localhost:{}/health\"\n",
                corner.server(name, n, &format!("--vram {vram}")),
                corner.port + n
            )
        };
        let services = service("chat", 0, 12000, "1") + &service("voice", 1, 4000, "1, 4");
        let text = format!(
            "[gpu]\nnvml_library = \"/io/bin/libsimgpu.so\"\n[lock]\nurl = \"redis://localhost:{redis}/0\"\n\
             key = \"gpu_mutex_v2:{}\"\n[phases]\n1 = \"talk\"\n4 = \"video\"\n{services}{}",
            self.name,
            service("video", 2, 18000, "4")
        );
        corner.file("gpuctl.toml", &text);
    }

    fn ready(&self) -> Vec<&'static str> {
        let is_ready = |name: &&&str| self.corner.state(name).0 == "ready";
        ["chat", "voice", "video"].iter().filter(is_ready).copied().collect()
    }
}

#[test]
fn jobs_on_two_nodes_get_their_cards_or_their_phase_and_everything_is_back_afterwards() {
    for program in ["slurmctld", "slurmd", "sbatch"] {
        // Not by `--version`: even for that, sbatch looks for a configuration.
        if !works("sh", &["-c", &format!("command -v {program}")]) {
            return skip_or_fail(
                "slurm",
                &format!("{program} (Debian's slurmctld, slurmd, slurm-client and munge)"),
            );
        }
    }
    let Some(machine) = Machine::own() else { return };
    let nodes = ["n1", "n2"].map(|name| Node { name, corner: machine.corner() });
    let shared = machine.corner();
    let redis = shared.port;
    machine.sh(&format!(
        "systemd-run --quiet --unit=test-redis redis-server --port {redis} --save ''"
    ));
    nodes.iter().for_each(|node| node.configure(redis));
    install(&shared, &nodes);
    for node in &nodes {
        node.corner.sh("gpuctl prepare-phase talk");
        assert_eq!(node.ready(), ["chat", "voice"], "{}", node.name);
    }

    // One job takes both cards whole, and the next needs the phase on one node.
    let work = "sleep 3";
    machine.sh(&format!(
        "cd /tmp && sbatch --nodes=2 --gres=gpu:1 --output=/io/whole.out --wrap '{work}'"
    ));
    until("both cards are free", || nodes.iter().all(|node| node.card().used_mb() == 0));
    for node in &nodes {
        let lock = node.corner.try_sh("gpuctl lock status").0;
        assert!(lock.contains("slurm-"), "{}: {lock}", node.name);
        let (code, said) = node.corner.gpuctl("start chat --no-wait");
        assert_eq!(code, 75, "{}: {said}", node.name);
    }
    until("everything is back", || nodes.iter().all(|node| node.ready() == ["chat", "voice"]));
    until("the locks are free", || {
        nodes.iter().all(|node| node.corner.gpuctl("lock status").0 == 0)
    });

    machine.sh("cd /tmp && sbatch --partition=phase-video --nodelist=n2 --gres=gpu:1 --output=/io/video.out --wrap 'sleep 3'");
    until("the phase is prepared", || nodes[1].ready() == ["voice", "video"]);
    assert_eq!(nodes[0].ready(), ["chat", "voice"], "the other node is not concerned");
    until("the phase is over", || nodes[1].ready() == ["chat", "voice"]);

    // A job without a card changes nothing for anybody.
    machine.sh("cd /tmp && sbatch --wait --nodelist=n1 --output=/io/none.out --wrap 'true'");
    assert_eq!(nodes[0].ready(), ["chat", "voice"]);
    let states = machine.sh("sinfo --noheader --Node --format='%N %T' | sort -u");
    assert_eq!(states, "n1 idle\nn2 idle\n", "a prolog or epilog has failed");
    for node in &nodes {
        assert_eq!(node.card().out_of_memory(), "", "{}", node.name);
    }
}

/// Installs Slurm on one machine, with a slurmd for each node, whose prolog and epilog are those of
/// the examples.
fn install(shared: &Corner, nodes: &[Node; 2]) {
    // Names are resolved only to kinds of address that the machine has besides its loopback, so it
    // needs one.
    shared.sh(&format!(
        "ip link add net0 type veth peer name net1 && ip address add {ADDRESS}/24 dev net0 && \
         ip link set net0 up && ip link set net1 up && echo \"{ADDRESS} $(uname -n) n1 n2\" >>/etc/hosts"
    ));
    let host = shared.sh("uname -n").trim().to_owned();
    let mut lines = String::new();
    for (node, port) in nodes.iter().zip([17001, 17002]) {
        lines += &format!(
            "NodeName={} NodeHostname={host} NodeAddr={ADDRESS} Port={port} CPUs=1 Gres=gpu:1 State=UNKNOWN\n",
            node.name
        );
    }
    let conf = format!(
        "ClusterName=test\nSlurmctldHost={host}({ADDRESS})\nSlurmUser=root\nSlurmdUser=root\nAuthType=auth/munge\n\
         StateSaveLocation=/var/spool/slurm-test\nSlurmdSpoolDir=/var/spool/slurmd-%n\nSlurmctldPidFile=/run/slurmctld.pid\n\
         SlurmdPidFile=/run/slurmd-%n.pid\nSlurmctldLogFile={0}\nSlurmdLogFile={1}\n\
         ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nSelectType=select/cons_tres\nSelectTypeParameters=CR_CPU\n\
         GresTypes=gpu\nReturnToService=2\nPrologFlags=Alloc\nProlog={2}\nEpilog={3}\n{lines}\
         PartitionName=jobs Nodes=n1,n2 Default=YES State=UP\nPartitionName=phase-video Nodes=n1,n2 State=UP\n",
        shared.path("slurmctld.log"),
        shared.path("slurmd-%n.log"),
        shared.path("prolog-here"),
        shared.path("epilog-here"),
    );
    shared.file("slurm.conf", &conf);
    shared.file("gres.conf", "NodeName=n[1-2] Name=gpu File=/dev/null\n");
    for name in ["prolog", "epilog"] {
        let script = fs::read_to_string(repository().join("examples/slurm").join(name)).unwrap();
        shared.file(name, &script.replace("/usr/local/sbin:", "/io/bin:/usr/local/sbin:"));
        // The two nodes are one machine here, and each has a card and a folder of its own.
        let of = |node: &Node| {
            format!(
                "{}) export SIMGPU_DIR={} GPUCTL_CONFIG={} GPUCTL_STATE_DIR={} ;;\n",
                node.name,
                node.corner.path("card"),
                node.corner.path("gpuctl.toml"),
                node.corner.path("state")
            )
        };
        let cases = nodes.iter().map(of).collect::<String>();
        let here = format!(
            "#!/bin/sh\ncase $SLURMD_NODENAME in\n{cases}esac\nexec {} >>{}.$SLURMD_NODENAME.log 2>&1\n",
            shared.path(name),
            shared.path(name)
        );
        shared.file(&format!("{name}-here"), &here);
    }
    shared.sh(&format!(
        "cd {0} && chmod +x prolog epilog prolog-here epilog-here && mkdir -p /etc/slurm /var/spool/slurm-test && \
         cp slurm.conf gres.conf /etc/slurm/ && echo 'CgroupPlugin=cgroup/v1' >/etc/slurm/cgroup.conf && \
         systemctl start munge && systemd-run --quiet --unit=test-slurmctld slurmctld -D && \
         for n in n1 n2; do systemd-run --quiet --unit=test-slurmd-$n slurmd -D -N $n; done",
        shared.path("")
    ));
    until("both nodes are idle", || {
        shared.try_sh("sinfo --noheader --Node --format='%N %T' | sort -u").0
            == "n1 idle\nn2 idle\n"
    });
}
