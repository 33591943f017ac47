//! A supervisor at work on a VM that is a stand-in, reached as commands do.

use super::*;
use crate::config::{Paths, SandboxId};
use crate::sandbox::identity::Uuid;
use crate::sandbox::network::NetworkKind;
use crate::sandbox::spec::SandboxSpec;
use crate::sandbox::stand_in::{StandIn, StandInVm};
use crate::sandbox::vmm::{Carrier, Vmm};
use crate::supervisor::client::{ClientError, Supervisors};
use protocols::AgentAddress;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

/// A supervised stand-in in a state root of its own.
struct Scene {
    _root: tempfile::TempDir,
    vm: Arc<StandIn>,
    id: SandboxId,
    commands: Supervisors,
    service: JoinHandle<Result<(), ServeError>>,
}

/// A stand-in in a state root of its own, and what supervises it.
struct Stage {
    root: tempfile::TempDir,
    vm: Arc<StandIn>,
    supervised: Supervised,
    sockets: Sockets,
}

impl Stage {
    fn with_kernel(root: tempfile::TempDir, kernel: PathBuf) -> Self {
        let paths = Paths::below(&root.path().join("state")).unwrap();
        let id = SandboxId::random().unwrap();
        let spec = SandboxSpec {
            vmm: Vmm::Qemu,
            carrier: Carrier::Serial,
            network: NetworkKind::None,
            vcpus: 1,
            memory_mib: 64,
            kernel,
            initrd: "/i".into(),
            disks: Vec::new(),
            directories: Vec::new(),
            containers: Vec::new(),
        };
        let vm = Arc::new(StandIn::default());
        let stand_in = Box::new(StandInVm(Arc::clone(&vm)));
        let mut record = SandboxRecord::begin(id.clone(), Uuid::draw().unwrap(), spec);
        record.set_state(State::Running);
        record.set_vm(stand_in.record());
        let directory = RunDirectory::create(&paths, &id, "test", &record).unwrap();
        let nowhere = AgentAddress::Unix {
            path: "/nonexistent".into(),
        };
        let sockets = Sockets::bind(&directory).unwrap();
        let supervised = Supervised {
            paths,
            vm: Arc::from(stand_in as Box<dyn Vm>),
            link: AgentLink::keep(nowhere, None),
            console: None,
            directory,
            record,
        };
        Self {
            root,
            vm,
            supervised,
            sockets,
        }
    }
}

impl Scene {
    fn set() -> Self {
        Self::with_kernel(tempfile::tempdir().unwrap(), "/k".into())
    }

    fn with_kernel(root: tempfile::TempDir, kernel: PathBuf) -> Self {
        let Stage {
            root,
            vm,
            supervised,
            sockets,
        } = Stage::with_kernel(root, kernel);
        Self {
            _root: root,
            vm,
            id: supervised.record.id.clone(),
            // A dead supervisor cannot be revived by a program that is none.
            commands: Supervisors::with_program(supervised.paths.clone(), "/nonexistent".into()),
            service: tokio::spawn(supervised.serve(sockets)),
        }
    }

    async fn ask(&self, request: Request) -> Result<State, ClientError> {
        let status = self.commands.ask(&self.id, &request).await?;
        Ok(status.state)
    }

    fn recorded(&self) -> SandboxRecord {
        SandboxRecord::read(self.commands.paths(), &self.id).unwrap()
    }
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async { timeout(Duration::from_secs(20), test).await.unwrap() });
}

#[test]
fn a_sandbox_is_paused_resumed_and_stopped_by_its_clients() {
    run(async {
        let scene = Scene::set();
        assert_eq!(
            scene.ask(Request::Inspect {}).await.unwrap(),
            State::Running
        );
        assert_eq!(scene.ask(Request::Pause {}).await.unwrap(), State::Paused);
        assert!(scene.vm.paused.load(Ordering::SeqCst));
        assert_eq!(scene.recorded().state, State::Paused);
        assert_eq!(scene.ask(Request::Resume {}).await.unwrap(), State::Running);
        let error = scene.ask(Request::Resume {}).await.unwrap_err();
        assert!(error.to_string().contains("running"), "{error}");
        let stop = Request::Stop { grace_millis: 0 };
        assert_eq!(scene.ask(stop).await.unwrap(), State::Stopped);
        scene.service.await.unwrap().unwrap();
    });
}

#[test]
fn a_vmm_that_ends_stops_the_sandbox_and_its_supervisor() {
    run(async {
        let mut scene = Scene::set();
        scene.ask(Request::Inspect {}).await.unwrap();
        scene.vm.end();
        (&mut scene.service).await.unwrap().unwrap();
        let record = scene.recorded();
        assert_eq!(record.state, State::Stopped);
        assert_eq!(record.exit.as_deref(), Some("exit status 0"));
        let error = scene.ask(Request::Inspect {}).await.unwrap_err();
        assert!(matches!(error, ClientError::Stopped { .. }), "{error}");
        // Stopping what has stopped is no error, and removing it leaves nothing.
        scene
            .commands
            .stop(&scene.id, Duration::ZERO)
            .await
            .unwrap();
        scene.commands.remove(&scene.id).await.unwrap();
        let error = scene.ask(Request::Inspect {}).await.unwrap_err();
        assert!(matches!(error, ClientError::Unknown(_)), "{error}");
    });
}

#[test]
fn a_vmm_that_could_not_be_ended_stays_in_the_record_of_its_sandbox() {
    run(async {
        let mut scene = Scene::set();
        scene.ask(Request::Inspect {}).await.unwrap();
        scene.vm.is_lost.store(true, Ordering::SeqCst);
        scene.vm.end();
        (&mut scene.service).await.unwrap().unwrap();
        let record = scene.recorded();
        assert_eq!(record.state, State::Stopped);
        assert!(record.exit.unwrap().contains("killed vmm"));
        // This very process stands in for it.
        let own = crate::host::ProcessIdentity::current().unwrap();
        assert_eq!(record.head.processes(), [own]);
    });
}

#[test]
fn a_client_that_talks_nonsense_is_told_so_and_harms_nobody() {
    run(async {
        let scene = Scene::set();
        let control = scene.commands.paths().sandbox(&scene.id).control();
        for nonsense in [&b"{\"verb\":\"explode\"}\n"[..], b"\xff\n", b"\n"] {
            let mut stream = protocols::unix::connect(&control).await.unwrap();
            stream.write_all(nonsense).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.contains("\"failed\""), "{answer}");
        }
        let mut endless = protocols::unix::connect(&control).await.unwrap();
        let mut sent = 0;
        while endless.write_all(&[b' '; 4096]).await.is_ok() {
            sent += 4096;
            assert!(sent < 4 * line::LIMIT, "an endless line is read for ever");
        }
        assert_eq!(
            scene.ask(Request::Inspect {}).await.unwrap(),
            State::Running
        );
    });
}

#[test]
fn a_silent_client_keeps_nobody_waiting() {
    run(async {
        let scene = Scene::set();
        let control = scene.commands.paths().sandbox(&scene.id).control();
        let _silent = protocols::unix::connect(&control).await.unwrap();
        assert_eq!(
            scene.ask(Request::Inspect {}).await.unwrap(),
            State::Running
        );
    });
}

#[test]
fn without_an_agent_its_ports_are_refused_at_once() {
    run(async {
        let scene = Scene::set();
        let address = scene.commands.agent(&scene.id).await.unwrap();
        let error = protocols::Link::connect(&address, Duration::from_secs(10))
            .await
            .unwrap_err();
        assert!(
            matches!(error, protocols::LinkError::Refused { .. }),
            "{error}"
        );
    });
}

#[test]
fn nobody_else_may_act_while_a_supervisor_lives() {
    run(async {
        let scene = Scene::set();
        scene.ask(Request::Inspect {}).await.unwrap();
        let error = RunDirectory::open(scene.commands.paths(), &scene.id, "other").unwrap_err();
        assert!(error.to_string().contains("held by"), "{error}");
    });
}

/// A scene in which nothing can be kept in the store until the file is closed.
fn scene_with_a_slow_store() -> (Scene, std::fs::File) {
    let root = tempfile::tempdir().unwrap();
    let kernel = root.path().join("kernel");
    std::fs::write(&kernel, b"kernel").unwrap();
    let scene = Scene::with_kernel(root, kernel);
    let paths = scene.commands.paths();
    crate::store::Store::open(paths).unwrap();
    let staging = std::fs::File::open(paths.store.join("staging")).unwrap();
    staging.lock().unwrap();
    (scene, staging)
}

/// Asks for a save on a connection of its own, and returns once it was heard.
async fn ask_for_a_save(scene: &Scene) -> BufReader<UnixStream> {
    let control = scene.commands.paths().sandbox(&scene.id).control();
    let mut client = BufReader::new(protocols::unix::connect(&control).await.unwrap());
    let name = "second".parse().unwrap();
    line::write(&mut client, &Request::Save { name })
        .await
        .unwrap();
    loop {
        // Another save is refused once this one is under way.
        let refused = scene.ask(Request::Resume {}).await.unwrap_err();
        if refused.to_string().contains("saved as template second") {
            return client;
        }
    }
}

async fn failure(client: &mut BufReader<UnixStream>) -> String {
    match line::read(client).await.unwrap().unwrap() {
        Reply::Failed { reason } => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn while_a_save_is_prepared_everybody_is_answered_and_a_stop_ends_it() {
    run(async {
        let (scene, store) = scene_with_a_slow_store();
        let mut saver = ask_for_a_save(&scene).await;
        let found = scene.ask(Request::Inspect {}).await.unwrap();
        assert_eq!(found, State::Running);
        let error = scene.ask(Request::Pause {}).await.unwrap_err();
        assert!(error.to_string().contains("being saved"), "{error}");
        let stop = Request::Stop { grace_millis: 0 };
        assert_eq!(scene.ask(stop).await.unwrap(), State::Stopped);
        let told = failure(&mut saver).await;
        assert!(told.contains("stopped before"), "{told}");
        drop(store);
        let paths = scene.commands.paths().clone();
        scene.service.await.unwrap().unwrap();
        let templates = paths.store.join("templates");
        assert_eq!(std::fs::read_dir(templates).unwrap().count(), 0);
    });
}

#[test]
fn a_vmm_that_ends_while_its_save_is_prepared_stops_the_sandbox() {
    run(async {
        let (mut scene, _store) = scene_with_a_slow_store();
        let mut saver = ask_for_a_save(&scene).await;
        scene.vm.end();
        (&mut scene.service).await.unwrap().unwrap();
        assert_eq!(scene.recorded().exit.as_deref(), Some("exit status 0"));
        assert!(line::read::<Reply, _>(&mut saver).await.unwrap().is_none());
    });
}

#[test]
fn a_save_that_cannot_be_leaves_the_sandbox_as_it_was() {
    run(async {
        let scene = Scene::set();
        let name = "second".parse().unwrap();
        let error = scene.commands.save(&scene.id, &name).await.unwrap_err();
        assert!(error.to_string().contains("/k"), "{error}");
        assert_eq!(scene.ask(Request::Pause {}).await.unwrap(), State::Paused);
        let error = scene.commands.save(&scene.id, &name).await.unwrap_err();
        assert!(error.to_string().contains("paused"), "{error}");
        assert_eq!(scene.ask(Request::Resume {}).await.unwrap(), State::Running);
    });
}

/// Names the run directory whose sockets are dialled.
const DIALLED: &str = "TARDIGRADE_TEST_DIAL";
/// The test that dials.
const DIALLER: &str = "supervisor::server::tests::dials_both_sockets";

/// What each socket answers to a process that is started by `starter`; none
/// where it cannot be started so.
async fn answers_to(starter: &[&str], run_directory: &Path) -> Option<Vec<String>> {
    let program = std::env::current_exe().unwrap();
    let (first, rest) = starter.split_first().unwrap();
    let mut command = tokio::process::Command::new(first);
    command.args(rest).arg(program);
    command.args(["--exact", DIALLER, "--ignored", "--nocapture"]);
    let dialled = command.env(DIALLED, run_directory).output().await.unwrap();
    let said = String::from_utf8_lossy(&dialled.stdout);
    let answers = |line: &str| line.strip_prefix("answer: ").map(str::to_owned);
    let answers: Vec<String> = said.lines().filter_map(answers).collect();
    (!answers.is_empty()).then_some(answers)
}

#[test]
fn who_lives_in_another_pid_namespace_is_refused_unheard_at_both_sockets() {
    run(async {
        let scene = Scene::set();
        let place = scene.commands.paths().sandbox(&scene.id);
        let place = place.control().parent().unwrap().to_owned();
        let ours = answers_to(&["env"], &place).await.unwrap();
        assert!(ours[0].contains("\"running\""), "{ours:?}");
        assert!(ours[1].starts_with("ERR "), "{ours:?}");

        // As a confined VMM is: of our user, below our pid namespace.
        let confined = match rustix::process::geteuid().is_root() {
            true => &["unshare", "--pid", "--fork"][..],
            false => &["unshare", "--user", "--pid", "--fork"][..],
        };
        match answers_to(confined, &place).await {
            Some(theirs) => assert_eq!(theirs, ["nothing", "nothing"]),
            None => eprintln!("skipped: no pid namespace can be had"),
        }
        assert_eq!(
            scene.ask(Request::Inspect {}).await.unwrap(),
            State::Running
        );
    });
}

#[test]
#[ignore = "the client of who_lives_in_another_pid_namespace_is_refused_unheard_at_both_sockets"]
fn dials_both_sockets() {
    use std::io::{BufRead, Write};
    let place = PathBuf::from(std::env::var_os(DIALLED).unwrap());
    for (socket, words) in [
        ("control.sock", "{\"verb\":\"inspect\"}\n"),
        ("agent.sock", "CONNECT 1024\n"),
    ] {
        let mut stream = std::os::unix::net::UnixStream::connect(place.join(socket)).unwrap();
        // Refused, it may be closed by now.
        let _ = stream.write_all(words.as_bytes());
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let mut answer = String::new();
        let read = std::io::BufReader::new(stream).read_line(&mut answer);
        let timed_out = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        assert!(!read.as_ref().is_err_and(timed_out), "{socket} is silent");
        match answer.trim_end() {
            "" => println!("answer: nothing"),
            answer => println!("answer: {answer}"),
        }
    }
}

/// Somebody who asks and is told on another way than a connection.
fn client() -> (Client, oneshot::Receiver<Reply>) {
    let (answer, answered) = oneshot::channel();
    let (_, written) = oneshot::channel();
    (Client { answer, written }, answered)
}

/// Stops a sandbox whose save is quiescing, or freezing, its guest, and sees what
/// becomes of it.
async fn stop_amid_a_save(freezing: bool) {
    let Stage {
        root: _root,
        vm,
        mut supervised,
        sockets: _sockets,
    } = Stage::with_kernel(tempfile::tempdir().unwrap(), "/k".into());
    supervised.write_state(State::Saved).unwrap();
    let (saver, told) = client();
    let step = Arc::new(());
    let mut save = Some(Save::stuck(freezing, saver, Arc::clone(&step)));
    let needs_vm = save.as_ref().is_some_and(Save::needs_vm);
    assert_eq!(
        needs_vm, !freezing,
        "a VM that is being killed ends unheard"
    );

    // What else is asked has to wait.
    let (other, answered) = client();
    let asked = Asked {
        request: Request::Resume {},
        client: other,
    };
    supervised.hear(asked, &mut save).await;
    let refused = answered.await.unwrap();
    assert!(matches!(refused, Reply::Failed { .. }), "{refused:?}");
    assert_eq!(Arc::strong_count(&step), 2, "its step goes on");

    // A guest that may be frozen is given no grace: an hour would be one.
    let (stopper, answered) = client();
    let asked = Asked {
        request: Request::Stop {
            grace_millis: 3_600_000,
        },
        client: stopper,
    };
    let written = timeout(Duration::from_secs(5), supervised.hear(asked, &mut save));
    assert_eq!(written.await.unwrap().len(), 2, "both are answered");
    assert!(vm.is_over.load(Ordering::SeqCst));
    assert!(save.is_none());
    assert_eq!(Arc::strong_count(&step), 1, "what the step held is gone");
    let Reply::Status(status) = answered.await.unwrap() else {
        panic!("the stop failed");
    };
    assert_eq!(status.state, State::Stopped);
    let Reply::Failed { reason } = told.await.unwrap() else {
        panic!("it was saved");
    };
    assert!(reason.contains("stopped before"), "{reason}");
    let record = SandboxRecord::read(&supervised.paths, &supervised.record.id).unwrap();
    assert_eq!(record.state, State::Stopped);
    assert_eq!(record.exit.as_deref(), Some("killed by stop"));
}

#[test]
fn a_stop_ends_a_save_whose_guest_is_asked_to_freeze() {
    run(stop_amid_a_save(false));
}

#[test]
fn a_stop_ends_a_save_whose_vm_is_being_saved() {
    run(stop_amid_a_save(true));
}
