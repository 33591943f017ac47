//! The virtiofsds of one VM: started before its VMM, and gone with it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::probe::{Virtiofsd, find};
use crate::error::Error;
use crate::log::{last_line_of, open_log};
use crate::process::{
    Cgroup, Confinement, Filter, Given, Identity, Keeps, Launch, Needs, Process, User,
    kill_deadline, spawn,
};
use crate::socket::Listener;
use crate::spec::{Backing, SharedDirectory, VmSpec};
use crate::vm::{DirectoryRecord, VmExit};

/// How long a VMM may take to end, or to say what is wrong, when a virtiofsd of
/// its VM has ended: both see the other's end at once.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// The capabilities that it would want where it has the user root, and has not.
const MODCAPS: &str = "-chown:-dac_override:-fowner:-fsetid:-setgid:-setuid:-mknod:-setfcap";
/// Its word in each line of its log.
const WORD: &str = "virtiofsd";

/// What is to be served, and by what.
#[derive(Debug)]
pub(crate) struct Offer<'a> {
    spec: &'a VmSpec,
    confinement: &'a Confinement,
    virtiofsd: Option<Virtiofsd>,
}

/// Directories that are served, each at a socket that listens: connect to them,
/// then close them.
pub(crate) struct Served {
    pub(crate) daemons: Daemons,
    /// In the order of the spec's directories.
    pub(crate) sockets: Vec<Listener>,
}

/// The virtiofsds of a VM. Dropped, they are killed, until they are released.
#[derive(Debug, Default)]
pub(crate) struct Daemons {
    processes: Vec<(Process, DirectoryRecord)>,
    /// Whether one was gone when they were taken over.
    incomplete: bool,
    /// When it was first seen that one has ended: whoever waits may give up and
    /// begin again, as often as it likes.
    lost: OnceLock<Instant>,
}

impl<'a> Offer<'a> {
    /// Looks for a virtiofsd, where the VM has a directory.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for RAM that no virtiofsd gets at; [`Error::Probe`]
    /// when there is none.
    pub(crate) async fn of(spec: &'a VmSpec, confinement: &'a Confinement) -> Result<Self, Error> {
        let virtiofsd = if spec.directories.is_empty() {
            None
        } else {
            is_shared(&spec.memory.backing)?;
            Some(find(confinement).await?)
        };
        Ok(Self {
            spec,
            confinement,
            virtiofsd,
        })
    }

    /// Starts a virtiofsd for each directory, whose socket is bound beside this
    /// path.
    ///
    /// # Errors
    /// When one cannot be started; then none is left, and no socket.
    pub(crate) fn serve(&self, beside: &Path) -> Result<Served, Error> {
        let mut served = Served {
            daemons: Daemons::default(),
            sockets: Vec::new(),
        };
        let Some(virtiofsd) = &self.virtiofsd else {
            return Ok(served);
        };
        for (index, directory) in self.spec.directories.iter().enumerate() {
            let socket = Listener::bind(&socket_path(beside, index))?;
            let started = self.start(virtiofsd, directory, &socket)?;
            served.daemons.processes.push(started);
            served.sockets.push(socket);
        }
        Ok(served)
    }

    fn start(
        &self,
        virtiofsd: &Virtiofsd,
        directory: &SharedDirectory,
        socket: &Listener,
    ) -> Result<(Process, DirectoryRecord), Error> {
        let confinement = self.confinement.for_virtiofsd()?;
        let given = confinement.give(directory)?;
        let listener = &socket.descriptor;
        let arguments = arguments(
            virtiofsd,
            &given,
            directory.readonly,
            listener.as_raw_fd(),
            confinement.ids(),
        );
        let log = open_log(&self.spec.log)?;
        let cell = confinement.cell(Needs::default())?;
        let cell = cell.map(|cell| cell.with(&given));
        let cgroup = Cgroup::of(self.spec)?;
        let inherited: Vec<BorrowedFd<'_>> = std::iter::once(listener.as_fd())
            .chain(given.descriptor())
            .chain(confinement.user().map(User::lock))
            .collect();
        let pid = spawn(&Launch {
            program: &virtiofsd.program,
            arguments: &arguments,
            inherited: &inherited,
            placed: &[],
            log: &log,
            output: None,
            keeps: (confinement.ids().0 == 0).then_some(Keeps::Dropping),
            filter: Some(Filter::NoPrivilegedPrograms),
            cell: cell.as_ref(),
            cgroup: cgroup.as_ref(),
        })?;
        let process = Process::child(pid)?;
        let identity = process.identity();
        let record = DirectoryRecord {
            path: directory.path.clone(),
            pid: identity.pid,
            start_time: identity.start_time,
            boot_id: identity.boot_id.clone(),
            confined: confinement.noted(),
        };
        Ok((process, record))
    }
}

/// Where the socket of a directory is while its VM is made.
pub(crate) fn socket_path(beside: &Path, index: usize) -> PathBuf {
    let mut name = beside.as_os_str().to_owned();
    name.push(format!(".fs{index}"));
    name.into()
}

/// Refuses RAM that is a VMM's alone.
fn is_shared(backing: &Backing) -> Result<(), Error> {
    match backing {
        Backing::Anonymous | Backing::FileBacked { shared: true, .. } => Ok(()),
        Backing::FileBacked { shared: false, .. } => Err(Error::Unsupported(
            "copy-on-write of ram with a shared directory: its virtiofsd writes to the guest's ram, \
             and would not to a private mapping of it",
        )),
    }
}

/// Its arguments. A user of the guest's that made a file is told to it as root,
/// whoever that was: to the host all of them are the one that it is itself.
fn arguments(
    virtiofsd: &Virtiofsd,
    given: &Given,
    readonly: bool,
    socket: i32,
    (uid, gid): (u32, u32),
) -> Vec<String> {
    let all_others = u32::MAX - 1;
    let mut arguments = vec![
        format!("--fd={socket}"),
        format!("--shared-dir={}", given.seen().display()),
        // It is confined from its first instruction on.
        "--sandbox=none".to_owned(),
        "--seccomp=kill".to_owned(),
        // Opening files by handles takes a capability that opens any.
        "--inode-file-handles=never".to_owned(),
        // A guest can make it complain without end, into a file of the host's.
        "--log-level=off".to_owned(),
        format!("--translate-uid=map:0:{uid}:1"),
        format!("--translate-uid=squash-guest:1:{uid}:{all_others}"),
        format!("--translate-gid=map:0:{gid}:1"),
        format!("--translate-gid=squash-guest:1:{gid}:{all_others}"),
    ];
    if uid == 0 {
        arguments.push(format!("--modcaps={MODCAPS}"));
    }
    if readonly {
        arguments.push("--readonly".to_owned());
    }
    if virtiofsd.migrates {
        arguments.push("--migration-mode=find-paths".to_owned());
    }
    arguments
}

impl Daemons {
    /// Takes over those of a record, as far as they live.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub(crate) fn of_records(records: &[DirectoryRecord]) -> Result<Self, Error> {
        let mut daemons = Self::default();
        for record in records {
            let identity = Identity {
                pid: record.pid,
                start_time: record.start_time,
                boot_id: record.boot_id.clone(),
            };
            match Process::found(&identity) {
                Ok(process) => daemons.processes.push((process, record.clone())),
                Err(Error::Identity { .. }) => daemons.incomplete = true,
                Err(error) => return Err(error),
            }
        }
        Ok(daemons)
    }

    /// Lets them outlive us.
    pub(crate) fn release(&mut self) {
        for (process, _) in &mut self.processes {
            process.release();
        }
    }

    /// What is kept of them.
    pub(crate) fn records(&self) -> Vec<DirectoryRecord> {
        self.processes
            .iter()
            .map(|(_, record)| record.clone())
            .collect()
    }

    /// Kills and reaps all of them; one that is gone already is no error.
    ///
    /// # Errors
    /// The first that could not be killed; the others are.
    pub(crate) async fn end(&self) -> Result<(), Error> {
        let sent = self.send_kill();
        self.gone_by(sent, kill_deadline()).await
    }

    /// Sends the signal to all of them, and tells of each whether it was refused.
    fn send_kill(&self) -> Vec<Result<(), Error>> {
        let processes = self.processes.iter();
        processes.map(|(process, _)| process.send_kill()).collect()
    }

    async fn gone_by(&self, sent: Vec<Result<(), Error>>, deadline: Instant) -> Result<(), Error> {
        let mut all = Ok(());
        for ((process, _), sent) in self.processes.iter().zip(sent) {
            all = all.and(gone(process, sent, deadline).await.map(drop));
        }
        all
    }

    /// Resolves when one has ended; never, where there is none.
    async fn one_ended(&self) {
        if self.incomplete {
            return;
        }
        let waiting = self.processes.iter();
        let mut waiting: Vec<_> = waiting
            .map(|(process, _)| Box::pin(process.exited()))
            .collect();
        std::future::poll_fn(|context| {
            let mut all = waiting.iter_mut();
            if all.any(|exited| exited.as_mut().poll(context).is_ready()) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// The work of making a VM, given up when one of them has ended: the VMM would
    /// wait for it. Whatever failed, one that ended by itself is why.
    ///
    /// # Errors
    /// Those of the work; [`Error::Directory`].
    pub(crate) async fn beside<T>(
        &self,
        log: &Path,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        if self.processes.is_empty() {
            return work.await;
        }
        let mut work = std::pin::pin!(work);
        let done = tokio::select! {
            biased;
            done = &mut work => Some(done),
            () = self.one_ended() => None,
        };
        match done {
            Some(Ok(made)) => Ok(made),
            Some(Err(error)) => Err(self.failure(log, LAST_WORDS).await.unwrap_or(error)),
            None => match self.failure(log, Duration::ZERO).await {
                Some(error) => Err(error),
                // It ended because its VMM did, which is about to be told.
                None => timeout(LAST_WORDS, work).await.unwrap_or_else(|_| {
                    let path = self.paths().next().unwrap_or_default();
                    Err(self.ended(log, path, VmExit::Exited(0)))
                }),
            },
        }
    }

    /// Why one of them has failed, if one does within this time.
    async fn failure(&self, log: &Path, within: Duration) -> Option<Error> {
        let _ = timeout(within, self.one_ended()).await;
        for (process, record) in &self.processes {
            let exit = timeout(Duration::ZERO, process.exited()).await;
            match exit {
                Ok(Ok(exit)) if exit != VmExit::Exited(0) => {
                    return Some(self.ended(log, record.path.clone(), exit));
                }
                _ => {}
            }
        }
        None
    }

    fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.processes.iter().map(|(_, record)| record.path.clone())
    }

    fn ended(&self, log: &Path, path: PathBuf, exit: VmExit) -> Error {
        let log = last_line_of(log, WORD);
        Error::Directory { path, exit, log }
    }
}

/// Waits for a VMM's end, and ends its virtiofsds then. A VMM whose virtiofsd has
/// ended is killed.
///
/// # Errors
/// When the kernel refuses to tell, or to kill.
pub(crate) async fn exited(vmm: &Process, daemons: &Daemons) -> Result<VmExit, Error> {
    let ended = tokio::select! {
        biased;
        exit = vmm.exited() => Some(exit?),
        () = daemons.one_ended() => None,
    };
    let exit = match ended {
        Some(exit) => exit,
        None => {
            // The VMM's end may be why, and be told in a moment.
            let deadline = *daemons.lost.get_or_init(Instant::now) + LAST_WORDS;
            match timeout_at(deadline, vmm.exited()).await {
                Ok(exit) => exit?,
                Err(_) => {
                    kill(vmm, daemons).await?;
                    VmExit::LostDirectory
                }
            }
        }
    };
    daemons.end().await?;
    Ok(exit)
}

/// Kills and reaps a VMM and its virtiofsds: all are sent the signal before any
/// is waited for. One that is gone already is no error.
///
/// # Errors
/// The first that could not be killed; the others are.
pub(crate) async fn kill(vmm: &Process, daemons: &Daemons) -> Result<VmExit, Error> {
    let sent = (vmm.send_kill(), daemons.send_kill());
    let deadline = kill_deadline();
    let exit = gone(vmm, sent.0, deadline).await;
    let served = daemons.gone_by(sent.1, deadline).await;
    exit.and_then(|exit| served.map(|()| exit))
}

/// Waits for the end of a process, unless the signal was refused.
async fn gone(
    process: &Process,
    sent: Result<(), Error>,
    deadline: Instant,
) -> Result<VmExit, Error> {
    sent?;
    process.gone_by(deadline).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn virtiofsd(migrates: bool) -> Virtiofsd {
        Virtiofsd {
            program: "/v".into(),
            version: "1".to_owned(),
            migrates,
        }
    }

    #[test]
    fn every_user_of_the_guest_is_the_one_that_serves_and_root_has_no_capability() {
        let given = Given::Mount(std::fs::File::open("/").unwrap().into());
        let seen = format!("--shared-dir={}", given.seen().display());
        let line = |readonly, migrates, ids| {
            arguments(&virtiofsd(migrates), &given, readonly, 7, ids).join(" ")
        };
        let own = line(false, true, (1001, 1002));
        for word in [
            "--fd=7",
            seen.as_str(),
            "--translate-uid=map:0:1001:1",
            "--translate-uid=squash-guest:1:1001:4294967294",
            "--translate-gid=map:0:1002:1",
            "--migration-mode=find-paths",
        ] {
            assert!(own.contains(word), "{word}: {own}");
        }
        assert!(!own.contains("--readonly") && !own.contains("--modcaps"));
        let root = line(true, false, (0, 0));
        assert!(root.contains("--readonly") && root.contains("--modcaps=-chown:"));
        assert!(!root.contains("--migration-mode"));
    }

    /// A child that ends like this, followed.
    fn child(script: &str) -> (Process, DirectoryRecord) {
        let log = tempfile::tempfile().unwrap();
        let pid = spawn(&Launch {
            program: Path::new("/bin/sh"),
            arguments: &["-c".to_owned(), script.to_owned()],
            inherited: &[],
            placed: &[],
            log: &log,
            output: None,
            keeps: None,
            filter: None,
            cell: None,
            cgroup: None,
        });
        let process = Process::child(pid.unwrap()).unwrap();
        let identity = process.identity().clone();
        let record = DirectoryRecord {
            path: "/data".into(),
            pid: identity.pid,
            start_time: identity.start_time,
            boot_id: identity.boot_id,
            confined: crate::process::Confined::Insecure,
        };
        (process, record)
    }

    fn daemons(scripts: &[&str]) -> Daemons {
        Daemons {
            processes: scripts.iter().map(|script| child(script)).collect(),
            ..Daemons::default()
        }
    }

    #[tokio::test]
    async fn a_vmm_whose_virtiofsd_ends_is_killed_and_one_that_ends_takes_all_with_it() {
        let (vmm, _) = child("sleep 600");
        let two = daemons(&["sleep 600", "exit 0"]);
        assert_eq!(exited(&vmm, &two).await.unwrap(), VmExit::LostDirectory);
        let (vmm, _) = child("exit 3");
        let one = daemons(&["sleep 600"]);
        assert_eq!(exited(&vmm, &one).await.unwrap(), VmExit::Exited(3));
        for (process, _) in one.processes.iter().chain(&two.processes) {
            let exit = timeout(Duration::ZERO, process.exited()).await;
            assert!(exit.is_ok(), "it lives");
        }
    }

    /// Kills a VMM and its virtiofsds, where some have another user: which of them
    /// are left is told.
    fn killed_but_others(others: &'static [&'static str], own: &'static [&'static str]) {
        use rustix::process::{Pid, Signal, Uid, WaitOptions, geteuid, kill_process, waitpid};
        if !geteuid().is_root() {
            eprintln!("skipped: everybody may kill what is their own");
            return;
        }
        // Users are each thread's own.
        let working = std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            runtime.block_on(async {
                let start = |names: &[&'static str]| -> Vec<_> {
                    let names = names.iter();
                    names.map(|name| (*name, child("sleep 600"))).collect()
                };
                let mut all = start(others);
                let nobody = Uid::from_raw(65534);
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
                all.extend(start(own));
                all.sort_by_key(|(name, _)| *name == "vmm");
                let (_, (vmm, _)) = all.pop().unwrap();
                let served = Daemons {
                    processes: all.into_iter().map(|(_, child)| child).collect(),
                    ..Daemons::default()
                };
                let begun = Instant::now();
                assert!(kill(&vmm, &served).await.is_err());
                assert!(
                    begun.elapsed() < LAST_WORDS * 4,
                    "it waits for none in vain"
                );
                let processes = served.processes.iter().map(|(process, _)| process);
                let mut left = Vec::new();
                for process in processes.chain([&vmm]) {
                    if timeout(Duration::ZERO, process.exited()).await.is_err() {
                        left.push(process.identity().pid);
                    }
                }
                left
            })
        });
        let left = working.join().unwrap();
        assert_eq!(left.len(), others.len());
        for pid in left {
            let pid = Pid::from_raw(pid).unwrap();
            kill_process(pid, Signal::KILL).unwrap();
            waitpid(Some(pid), WaitOptions::empty()).unwrap();
        }
    }

    #[test]
    fn a_vmm_that_cannot_be_killed_keeps_none_of_its_virtiofsds_alive() {
        killed_but_others(&["vmm"], &["virtiofsd", "virtiofsd"]);
    }

    #[test]
    fn a_virtiofsd_that_cannot_be_killed_keeps_neither_its_vmm_nor_others_alive() {
        killed_but_others(&["virtiofsd"], &["virtiofsd", "vmm"]);
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_and_begun_again_puts_nothing_off() {
        let (vmm, _) = child("sleep 600");
        let one = daemons(&["exit 0"]);
        one.one_ended().await;
        let begun = Instant::now();
        let waited = async {
            loop {
                if let Ok(exit) = timeout(LAST_WORDS / 8, exited(&vmm, &one)).await {
                    return exit.unwrap();
                }
            }
        };
        assert_eq!(waited.await, VmExit::LostDirectory);
        assert!(begun.elapsed() < LAST_WORDS * 4, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn one_that_fails_is_why_its_vm_was_not_made_and_is_quoted() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let line = "[2026-01-01T00:00:00Z ERROR virtiofsd] Failed to open it\n";
        std::fs::write(log.path(), format!("{line}vmm: broken\n")).unwrap();
        let failing = daemons(&["exit 1"]);
        let waiting = std::future::pending::<Result<(), Error>>();
        let error = failing.beside(log.path(), waiting).await.unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("/data") && text.contains("Failed to open it"),
            "{text}"
        );
        // The VMM may be the first to say something.
        let failing = daemons(&["exit 1"]);
        let refused = async { Err::<(), _>(Error::MemorySaved) };
        let error = failing.beside(log.path(), refused).await.unwrap_err();
        assert!(matches!(error, Error::Directory { .. }), "{error}");
        // One that only follows its VMM is not why.
        let following = daemons(&["exit 0"]);
        let refused = async { Err::<(), _>(Error::MemorySaved) };
        let error = following.beside(log.path(), refused).await.unwrap_err();
        assert!(matches!(error, Error::MemorySaved), "{error}");
    }

    #[tokio::test]
    async fn those_that_are_gone_when_a_vm_is_taken_over_are_missed() {
        let mut living = daemons(&["sleep 600"]);
        living.release();
        let records = living.records();
        let adopted = Daemons::of_records(&records).unwrap();
        assert!(!adopted.incomplete);
        adopted.end().await.unwrap();
        living.end().await.unwrap();
        let adopted = Daemons::of_records(&records).unwrap();
        assert!(adopted.incomplete && adopted.processes.is_empty());
        let (vmm, _) = child("sleep 600");
        assert_eq!(exited(&vmm, &adopted).await.unwrap(), VmExit::LostDirectory);
    }

    #[test]
    fn only_ram_that_can_be_shared_goes_with_a_directory() {
        is_shared(&Backing::Anonymous).unwrap();
        let file = |shared| Backing::FileBacked {
            path: "/memory".into(),
            shared,
        };
        is_shared(&file(true)).unwrap();
        let error = is_shared(&file(false)).unwrap_err().to_string();
        assert!(error.contains("copy-on-write"), "{error}");
    }
}
