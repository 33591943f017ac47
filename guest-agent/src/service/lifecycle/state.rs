//! Where the sandbox stands between Quiesce and Release: what may come next,
//! and what a request that is repeated is answered.

use super::{QuiesceId, Quiesced, Receipt, Release, Thaw, ThawOrder};
use crate::service::error::ServiceError;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How far a release may move the clock: more than a host waits for a thaw, for
/// as long as its request was under way is how late the clock can be.
const CORRECTION_LIMIT: Duration = Duration::from_secs(120);
/// How long after its thaw a copy may still be told that it is one: the kernel
/// says so beside the thaw, and the thaw does not wait for it.
const LATE_WORD: Duration = Duration::from_secs(30);
/// Why nothing runs in a copy that nobody thawed.
const STRAY: &str = "this machine is a copy that nobody has thawed";

/// While it lives the gate lets nothing pass but Health, GetGuestDetails and
/// Thaw; dropping it opens the gate.
pub(crate) type Seal = Box<dyn std::fmt::Debug + Send>;

#[derive(Debug)]
enum Phase {
    Running,
    /// The freeze is under way.
    Quiescing(Seal),
    Quiesced(QuiesceId, Seal),
    /// The thaw is under way. The seal stays here, whatever becomes of the
    /// task that thaws.
    Thawing(QuiesceId, Seal),
    Thawed,
    Releasing,
}

/// The thaw that was last completed: asked for again, it is answered again.
#[derive(Debug)]
struct LastThaw {
    asked: Asked,
    receipt: Receipt,
    /// When it was done.
    at: Instant,
    /// By how much the clock was moved for the release, once it was: a release
    /// that failed after that and is asked for again does not move it twice.
    corrected: Option<i64>,
    released: bool,
}

impl LastThaw {
    /// How far the clock is to be moved: by the difference that the host found
    /// between the receipt's reading and its own clock.
    fn correction(&self, request: &Release) -> Result<i64, ServiceError> {
        let Some(corrected) = request.corrected_realtime_nanos else {
            // It stays where it is, wherever it was moved to before.
            return Ok(0);
        };
        let read = self.receipt.guest_realtime_nanos;
        let nanos = corrected.saturating_sub(read);
        if u128::from(nanos.unsigned_abs()) > CORRECTION_LIMIT.as_nanos() {
            return Err(ServiceError::Correction {
                nanos,
                limit: CORRECTION_LIMIT,
            });
        }
        match self.corrected {
            Some(before) if before != nanos => Err(wrong_state(
                "release",
                "the clock was corrected by another difference",
            )),
            _ => Ok(nanos),
        }
    }
}

/// What a release finds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BegunRelease {
    /// It was done before.
    Done,
    /// It is to be done now; the clock moved by so many nanoseconds first, if
    /// it has not been yet.
    Correct(Option<i64>),
}

/// What tells a request from another. The entropy is not kept: a word that
/// depends on all of it, by keys that nobody outside knows, stands for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    order: ThawOrder,
    entropy: u64,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    last: Option<LastThaw>,
    /// Whether the kernel's word on the copies of the last freeze is still to come,
    /// if it comes at all.
    word_due: bool,
    /// Whether this is a copy that nobody has thawed: its workload is frozen,
    /// whatever fails. Nothing but a quiesce and a thaw of its own end that.
    stray: bool,
    /// Whether it became one under the freeze or the thaw that is under way.
    copied_meanwhile: bool,
    /// Whether the guest had links when it was last frozen; looked up then, for
    /// each of its copies waits for the thaw.
    has_links: bool,
}

/// Where the sandbox stands between Quiesce and Release.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    state: Mutex<State>,
    /// Told when a quiesce begins, and when this is a copy that must not run.
    quiescing: Notify,
    /// The keys of [`Asked::entropy`]; the same in every copy, for they tell
    /// requests apart and keep nothing secret.
    keys: RandomState,
}

impl Lifecycle {
    pub(crate) fn running() -> Self {
        Self {
            state: Mutex::new(State {
                phase: Phase::Running,
                last: None,
                word_due: false,
                stray: false,
                copied_meanwhile: false,
                has_links: false,
            }),
            quiescing: Notify::new(),
            keys: RandomState::new(),
        }
    }

    /// What the request will be known by, should it be repeated.
    pub(super) fn asked(&self, request: &Thaw) -> Asked {
        Asked {
            order: request.order.clone(),
            entropy: self.keys.hash_one(request.entropy.bytes()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses what would start a process: between Thaw and Release it would
    /// wait in the frozen cgroup.
    pub(in crate::service) fn require_running(
        &self,
        call: &'static str,
    ) -> Result<(), ServiceError> {
        let state = self.state();
        match state.phase {
            _ if state.stray => Err(wrong_state(call, STRAY)),
            Phase::Running => Ok(()),
            _ => Err(wrong_state(call, "the sandbox is not released")),
        }
    }

    /// Whether the workload runs and may be worked on.
    pub(in crate::service) fn is_running(&self) -> bool {
        let state = self.state();
        !state.stray && matches!(state.phase, Phase::Running)
    }

    /// Waits until the workload is to be frozen, for a quiesce or since this is a
    /// copy that must not run; if it runs.
    pub(in crate::service) async fn quiesce_begins(&self) {
        let quiescing = self.quiescing.notified();
        tokio::pin!(quiescing);
        // Before the look: nothing is missed in between.
        quiescing.as_mut().enable();
        if self.is_running() {
            quiescing.await;
        }
    }

    /// Whether this is a copy that nobody has thawed, nor begun to.
    pub(crate) fn is_stray(&self) -> bool {
        let state = self.state();
        state.stray && matches!(state.phase, Phase::Running | Phase::Quiescing(_))
    }

    /// The kernel has said, at `now`, that this machine is a copy. Whether that
    /// was to be expected: its workload is frozen and a thaw is to come, or it was
    /// thawed and this is the word on that. Otherwise it must not run.
    pub(super) fn copied(&self, now: Instant) -> bool {
        let mut state = self.state();
        let due = std::mem::take(&mut state.word_due);
        let late = |last: &LastThaw| now.saturating_duration_since(last.at) <= LATE_WORD;
        let expected = match state.phase {
            Phase::Quiesced(..) => true,
            Phase::Quiescing(_) => false,
            Phase::Thawing(..) => due,
            Phase::Thawed | Phase::Releasing | Phase::Running => {
                due && state.last.as_ref().is_some_and(late)
            }
        };
        if !expected {
            state.stray = true;
            // Of the machine that it is a copy of: no answer and no release of it
            // is this one's.
            state.last = None;
            match state.phase {
                Phase::Thawed | Phase::Releasing => state.phase = Phase::Running,
                _ => state.copied_meanwhile = true,
            }
            self.quiescing.notify_waiters();
        }
        expected
    }

    /// Begins a quiesce: only from Running. A copy that nobody has thawed can be
    /// after one of its own.
    pub(super) fn begin_quiesce(&self, seal: Seal) -> Result<(), ServiceError> {
        let mut state = self.state();
        match state.phase {
            Phase::Running => {
                state.phase = Phase::Quiescing(seal);
                state.last = None;
                self.quiescing.notify_waiters();
                state.copied_meanwhile = false;
                Ok(())
            }
            _ => Err(wrong_state("quiesce", "the sandbox is not running")),
        }
    }

    /// The freeze succeeded: the seal is kept with the id that ends it.
    ///
    /// # Errors
    /// In a copy that was made meanwhile: the freeze is another machine's.
    pub(super) fn quiesced(&self, quiesced: &Quiesced) -> Result<(), ServiceError> {
        let mut state = self.state();
        match std::mem::replace(&mut state.phase, Phase::Running) {
            Phase::Quiescing(_) if state.copied_meanwhile => {
                return Err(wrong_state("quiesce", STRAY));
            }
            Phase::Quiescing(seal) => {
                state.phase = Phase::Quiesced(quiesced.id, seal);
                state.has_links = quiesced.has_links;
                state.word_due = true;
            }
            other => state.phase = other,
        }
        Ok(())
    }

    /// The freeze failed, or nobody was told of it. Whether the workload may run
    /// again.
    pub(super) fn quiesce_undone(&self) -> bool {
        let mut state = self.state();
        if state.stray {
            state.phase = Phase::Running;
        }
        !state.stray
    }

    /// Whether the machine that this one is a copy of had links.
    pub(super) fn has_links(&self) -> bool {
        self.state().has_links
    }

    /// The freeze was undone.
    pub(super) fn set_running(&self) {
        let mut state = self.state();
        state.phase = Phase::Running;
        state.word_due = false;
    }

    /// Begins a thaw, or gives the receipt of the very same request again.
    pub(super) fn begin_thaw(&self, request: &Thaw) -> Result<Option<Receipt>, ServiceError> {
        let mut state = self.state();
        if let Some(last) = &state.last
            && last.asked.order == request.order
            && last.asked == self.asked(request)
        {
            return Ok(Some(last.receipt.clone()));
        }
        let refusal = match std::mem::replace(&mut state.phase, Phase::Running) {
            Phase::Quiesced(id, seal) if id == request.order.quiesce_id => {
                state.phase = Phase::Thawing(id, seal);
                state.copied_meanwhile = false;
                return Ok(None);
            }
            other => {
                let refusal = match &other {
                    Phase::Quiesced(..) => "another quiesce id is expected",
                    Phase::Running | Phase::Quiescing(_) => "the sandbox is not quiesced",
                    Phase::Thawing(..) => "a thaw is under way",
                    Phase::Thawed | Phase::Releasing => "this copy was thawed already",
                };
                state.phase = other;
                refusal
            }
        };
        Err(wrong_state("thaw", refusal))
    }

    /// The only place that opens the gate after a quiesce.
    ///
    /// # Errors
    /// In a copy that was made meanwhile: it was another machine that was thawed.
    pub(super) fn thawed(&self, asked: Asked, receipt: Receipt) -> Result<(), ServiceError> {
        let mut state = self.state();
        if state.copied_meanwhile {
            state.phase = Phase::Running;
            return Err(wrong_state("thaw", STRAY));
        }
        state.stray = false;
        state.phase = Phase::Thawed;
        state.last = Some(LastThaw {
            asked,
            receipt,
            at: Instant::now(),
            corrected: None,
            released: false,
        });
        Ok(())
    }

    /// A step of the thaw failed: it may be asked for again.
    pub(super) fn thaw_failed(&self) {
        let mut state = self.state();
        state.phase = match std::mem::replace(&mut state.phase, Phase::Running) {
            Phase::Thawing(id, seal) => Phase::Quiesced(id, seal),
            other => other,
        };
    }

    /// Begins a release, of the generation that was thawed.
    pub(super) fn begin_release(&self, request: &Release) -> Result<BegunRelease, ServiceError> {
        let mut state = self.state();
        let last = state.last.as_ref();
        let last = last
            .filter(|last| last.receipt.generation == request.generation)
            .ok_or_else(|| wrong_state("release", "no such generation was thawed"))?;
        let nanos = last.correction(request)?;
        if last.released {
            return Ok(BegunRelease::Done);
        }
        let correct = last.corrected.is_none().then_some(nanos);
        match state.phase {
            Phase::Thawed => {
                state.phase = Phase::Releasing;
                Ok(BegunRelease::Correct(correct))
            }
            _ => Err(wrong_state("release", "a release is under way")),
        }
    }

    /// The clock was moved for the release.
    pub(super) fn corrected(&self, nanos: i64) {
        if let Some(last) = &mut self.state().last {
            last.corrected = Some(nanos);
        }
    }

    /// Whether the release that was begun is still this machine's.
    ///
    /// # Errors
    /// In a copy that was made meanwhile.
    pub(super) fn may_run(&self) -> Result<(), ServiceError> {
        if self.state().stray {
            return Err(wrong_state("release", STRAY));
        }
        Ok(())
    }

    pub(super) fn released(&self) {
        let mut state = self.state();
        state.phase = Phase::Running;
        if let Some(last) = &mut state.last {
            last.released = true;
        }
    }

    pub(super) fn release_failed(&self) {
        let mut state = self.state();
        if !state.stray {
            state.phase = Phase::Thawed;
        }
    }
}

fn wrong_state(call: &'static str, reason: &str) -> ServiceError {
    ServiceError::WrongState {
        call,
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::network::NetworkPlan;
    use super::super::{Identity, Receipt, Secret};
    use super::*;
    use crate::service::identity::Generation;
    use std::time::Instant;

    const READ: i64 = 1_700_000_000_000_000_000;
    const GENERATION: Generation = Generation([7; 16]);

    /// Thawed, and not released yet.
    fn thawed() -> Lifecycle {
        let lifecycle = Lifecycle::running();
        let asked = lifecycle.asked(&request(b"entropy"));
        lifecycle.thawed(asked, receipt()).unwrap();
        lifecycle
    }

    fn receipt() -> Receipt {
        Receipt {
            generation: GENERATION,
            steps: Vec::new(),
            clock_step_nanos: 0,
            guest_realtime_nanos: READ,
            guest_received_nanos: READ,
            identity: identity(),
            not_unique: Vec::new(),
        }
    }

    fn frozen() -> Quiesced {
        Quiesced {
            id: QuiesceId([1; 16]),
            has_links: false,
            steps: Vec::new(),
        }
    }

    /// Frozen, and each of its copies is told that it is one.
    fn quiesced() -> Lifecycle {
        let lifecycle = Lifecycle::running();
        lifecycle.begin_quiesce(Box::new(())).unwrap();
        lifecycle.quiesced(&frozen()).unwrap();
        lifecycle
    }

    fn thaw(lifecycle: &Lifecycle) -> Result<(), ServiceError> {
        let request = request(b"entropy");
        assert!(lifecycle.begin_thaw(&request)?.is_none());
        finish_thaw(lifecycle)
    }

    fn finish_thaw(lifecycle: &Lifecycle) -> Result<(), ServiceError> {
        let asked = lifecycle.asked(&request(b"entropy"));
        lifecycle.thawed(asked, receipt())
    }

    /// As far as the moment before the workload is unfrozen.
    fn begin_release(lifecycle: &Lifecycle) -> Result<(), ServiceError> {
        lifecycle.begin_release(&release(None))?;
        lifecycle.may_run()
    }

    fn is_refused<T: std::fmt::Debug>(outcome: Result<T, ServiceError>) -> bool {
        let text = outcome.unwrap_err().to_string();
        text.contains("a copy that nobody has thawed") || text.contains("no such generation")
    }

    fn identity() -> Identity {
        Identity {
            hostname: "one".into(),
            machine_id: "0".repeat(32),
            boot_id: String::new(),
        }
    }

    fn request(entropy: &[u8]) -> Thaw {
        Thaw {
            order: ThawOrder {
                quiesce_id: QuiesceId([1; 16]),
                generation: GENERATION,
                host_realtime_nanos: READ,
                identity: identity(),
                network: NetworkPlan::default(),
                files: Vec::new(),
            },
            entropy: Secret::new(entropy.to_vec()),
            received: Instant::now(),
        }
    }

    #[test]
    fn only_the_very_same_request_to_thaw_is_answered_again() {
        let lifecycle = thawed();
        let again = lifecycle.begin_thaw(&request(b"entropy")).unwrap();
        assert_eq!(again.unwrap().generation, GENERATION);
        let mut late = request(b"entropy");
        late.order.host_realtime_nanos += 1;
        for other in [request(b"Entropy"), request(b"entropy "), late] {
            let error = lifecycle.begin_thaw(&other).unwrap_err();
            assert!(matches!(error, ServiceError::WrongState { .. }), "{error}");
        }
    }

    fn release(corrected_realtime_nanos: Option<i64>) -> Release {
        Release {
            generation: GENERATION,
            hook_timeout: None,
            corrected_realtime_nanos,
        }
    }

    #[test]
    fn a_release_moves_the_clock_by_what_the_receipt_was_off() {
        for nanos in [-119_000_000_000, -1, 1, 119_000_000_000] {
            let begun = thawed().begin_release(&release(Some(READ + nanos)));
            assert_eq!(begun.unwrap(), BegunRelease::Correct(Some(nanos)));
        }
        let begun = thawed().begin_release(&release(None));
        assert_eq!(begun.unwrap(), BegunRelease::Correct(Some(0)));
    }

    #[test]
    fn a_release_that_is_asked_for_again_does_not_move_the_clock_again() {
        let lifecycle = thawed();
        let request = release(Some(READ + 5));
        lifecycle.begin_release(&request).unwrap();
        // The clock was moved, the workload could not be unfrozen.
        lifecycle.corrected(5);
        lifecycle.release_failed();
        // Nor when it is asked for without a word about the clock.
        for request in [&request, &release(None)] {
            let again = lifecycle.begin_release(request).unwrap();
            assert_eq!(again, BegunRelease::Correct(None));
            lifecycle.release_failed();
        }
        lifecycle.begin_release(&request).unwrap();
        lifecycle.released();
        for request in [&request, &release(None)] {
            let done = lifecycle.begin_release(request).unwrap();
            assert_eq!(done, BegunRelease::Done);
        }
        let other = lifecycle.begin_release(&release(Some(READ + 6)));
        assert!(matches!(other, Err(ServiceError::WrongState { .. })));
    }

    #[test]
    fn a_clock_that_could_not_be_moved_is_moved_the_next_time() {
        let lifecycle = thawed();
        lifecycle.begin_release(&release(Some(READ + 5))).unwrap();
        lifecycle.release_failed();
        let again = lifecycle.begin_release(&release(Some(READ + 6))).unwrap();
        assert_eq!(again, BegunRelease::Correct(Some(6)));
    }

    #[test]
    fn a_correction_beyond_all_reason_is_refused_and_nothing_is_begun() {
        let lifecycle = thawed();
        for corrected in [1, READ - 121_000_000_000, READ + 121_000_000_000, i64::MAX] {
            let error = lifecycle
                .begin_release(&release(Some(corrected)))
                .unwrap_err();
            assert!(matches!(error, ServiceError::Correction { .. }), "{error}");
        }
        assert!(lifecycle.begin_release(&release(None)).is_ok());
    }

    #[test]
    fn the_word_on_a_clone_may_come_at_any_moment_of_its_thaw() {
        // Between any two steps of a clone's, once.
        for moment in 0..5 {
            let lifecycle = quiesced();
            let mut now = 0;
            let mut told = |lifecycle: &Lifecycle| {
                if now == moment {
                    assert!(lifecycle.copied(Instant::now()), "{moment}");
                }
                now += 1;
            };
            told(&lifecycle);
            lifecycle.begin_thaw(&request(b"entropy")).unwrap();
            told(&lifecycle);
            finish_thaw(&lifecycle).unwrap();
            told(&lifecycle);
            begin_release(&lifecycle).unwrap();
            told(&lifecycle);
            lifecycle.released();
            told(&lifecycle);
            lifecycle.require_running("exec").unwrap();
            assert!(!lifecycle.is_stray());
        }
    }

    #[test]
    fn a_word_that_no_thaw_explains_makes_it_a_copy_that_must_not_run() {
        let never_frozen = Lifecycle::running();
        // That of the clone has come; this is another.
        let told_before = quiesced();
        told_before.copied(Instant::now());
        thaw(&told_before).unwrap();
        begin_release(&told_before).unwrap();
        told_before.released();
        for lifecycle in [never_frozen, told_before] {
            assert!(!lifecycle.copied(Instant::now()));
            assert!(lifecycle.is_stray());
            assert!(is_refused(lifecycle.require_running("exec")));
            // The host that it is a copy of a clone of asks once more.
            assert!(lifecycle.begin_thaw(&request(b"entropy")).is_err());
            assert!(is_refused(lifecycle.begin_release(&release(None))));
        }
        // It comes too late to be the clone's.
        let late = quiesced();
        thaw(&late).unwrap();
        begin_release(&late).unwrap();
        late.released();
        let after = Instant::now() + LATE_WORD + Duration::from_secs(1);
        assert!(!late.copied(after));
        assert!(late.is_stray());
    }

    #[test]
    fn a_copy_that_nobody_thawed_runs_after_a_thaw_of_its_own() {
        let lifecycle = Lifecycle::running();
        assert!(!lifecycle.copied(Instant::now()));
        // A freeze that fails leaves it as it is.
        lifecycle.begin_quiesce(Box::new(())).unwrap();
        assert!(!lifecycle.quiesce_undone());
        assert!(lifecycle.is_stray());
        // So does one that nobody is told of.
        lifecycle.begin_quiesce(Box::new(())).unwrap();
        lifecycle.quiesced(&frozen()).unwrap();
        assert!(!lifecycle.quiesce_undone());
        assert!(is_refused(lifecycle.require_running("exec")));
        lifecycle.begin_quiesce(Box::new(())).unwrap();
        lifecycle.quiesced(&frozen()).unwrap();
        assert!(!lifecycle.is_stray());
        lifecycle.begin_thaw(&request(b"entropy")).unwrap();
        lifecycle.thaw_failed();
        thaw(&lifecycle).unwrap();
        begin_release(&lifecycle).unwrap();
        lifecycle.released();
        lifecycle.require_running("exec").unwrap();
    }

    #[test]
    fn a_copy_that_is_made_under_a_step_does_not_finish_it() {
        let lifecycle = Lifecycle::running();
        lifecycle.begin_quiesce(Box::new(())).unwrap();
        assert!(!lifecycle.copied(Instant::now()));
        assert!(is_refused(lifecycle.quiesced(&frozen())));
        assert!(!lifecycle.quiesce_undone());

        let told = || {
            let lifecycle = quiesced();
            assert!(lifecycle.copied(Instant::now()));
            lifecycle
        };
        let thawing = told();
        thawing.begin_thaw(&request(b"entropy")).unwrap();
        assert!(!thawing.copied(Instant::now()));
        assert!(is_refused(finish_thaw(&thawing)));

        let thawed = told();
        thaw(&thawed).unwrap();
        assert!(!thawed.copied(Instant::now()));
        assert!(is_refused(begin_release(&thawed)));

        let releasing = told();
        thaw(&releasing).unwrap();
        releasing.begin_release(&release(None)).unwrap();
        assert!(!releasing.copied(Instant::now()));
        assert!(is_refused(releasing.may_run()));
        releasing.release_failed();

        for lifecycle in [lifecycle, thawing, thawed, releasing] {
            assert!(lifecycle.is_stray());
            assert!(is_refused(lifecycle.require_running("exec")));
        }
    }

    #[tokio::test]
    async fn work_that_ends_for_a_freeze_ends_for_that_of_a_stray_copy_too() {
        for is_copy in [false, true] {
            let lifecycle = Lifecycle::running();
            let begins = lifecycle.quiesce_begins();
            tokio::pin!(begins);
            assert!(futures::poll!(&mut begins).is_pending());
            if is_copy {
                assert!(!lifecycle.copied(Instant::now()));
            } else {
                lifecycle.begin_quiesce(Box::new(())).unwrap();
            }
            assert!(futures::poll!(&mut begins).is_ready());
        }
    }

    #[test]
    fn a_freeze_that_was_undone_explains_no_word() {
        let lifecycle = quiesced();
        assert!(lifecycle.quiesce_undone());
        lifecycle.set_running();
        assert!(!lifecycle.copied(Instant::now()));
    }
}
