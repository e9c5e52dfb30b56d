//! One rank's handle of NCCL: how operations are issued to it, how it fails, how it ends.
//!
//! NCCL's operations wait on the device for the other ranks, so one that is gone would stop this device for ever, and
//! with it the host, as soon as that waits or the driver's queue is full. A thread per communicator therefore looks
//! for errors and for operations that make no progress, and aborts the communicator: then the device goes on, with
//! nonsense, and the next operation or wait of the host ends with the error.

use super::library::{self, Code, Handle, IN_PROGRESS, Id, Library, SUCCESS};
use super::pending::Transfer;
use crate::cuda::{Cuda, DeviceError, Mark, SideStream, Watched};
use crate::tensor::Tensor;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{env, fmt, mem};

/// How often the thread looks.
const PERIOD: Duration = Duration::from_millis(50);
/// Age from which it asks the driver about an operation: most are done long before.
const OLD: Duration = Duration::from_secs(1);
/// Time without progress after which an operation is given up; `SMELT_NCCL_SECONDS` says another one. A rank that saves
/// or compiles lets the others wait for minutes.
const LIMIT: Duration = Duration::from_secs(600);

const HINT: &str = "see what the other ranks say, or set NCCL_DEBUG=WARN; another try goes on from the last save";

/// Names a group to be: one rank makes it, all ranks [`join`](super::Nccl::join) with it. Its bytes may be sent to
/// other processes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UniqueId(pub [u8; 128]);

impl fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("UniqueId").finish_non_exhaustive()
    }
}

impl UniqueId {
    pub(super) fn new() -> Result<Self, DeviceError> {
        let ((library, _), mut id) = (library::open()?, Id([0; 128]));
        // SAFETY: writes the id.
        let code = unsafe { (library.get_unique_id)(&raw mut id) };
        if code == SUCCESS {
            return Ok(Self(id.0));
        }
        let why = library.explain(code, std::ptr::null_mut());
        Err(DeviceError::temporary(format!("NCCL failed to make an id for a group: {why}"), HINT))
    }
}

pub(super) struct Communicator {
    pub(super) rank: usize,
    pub(super) size: usize,
    library: &'static Library,
    side: SideStream,
    state: Mutex<State>,
    failure: OnceLock<DeviceError>,
    limit: Duration,
}

struct State {
    /// Null once it was destroyed or aborted.
    handle: Handle,
    /// Operations that may not be done yet, with the time of their issue.
    issued: VecDeque<(Instant, Arc<Mark>)>,
    /// When the last operation was seen to be done.
    progress: Instant,
}

// SAFETY: NCCL's handle may be used from any thread, by one at a time, which the lock sees to.
unsafe impl Send for State {}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { rank, size, failure, .. } = self;
        f.debug_struct("Communicator")
            .field("rank", rank)
            .field("size", size)
            .field("failure", failure)
            .finish_non_exhaustive()
    }
}

impl Communicator {
    /// **Waits** until all ranks have come.
    pub(super) fn join(gpu: &Arc<Cuda>, id: &UniqueId, rank: usize, size: usize) -> Result<Arc<Self>, DeviceError> {
        let ((library, _), side) = (library::open()?, SideStream::new(gpu)?);
        let (mut handle, id) = (std::ptr::null_mut(), Id(id.0));
        // SAFETY: the device's context is that of this thread, since the stream was made; writes the handle.
        let code = unsafe { (library.init_rank)(&raw mut handle, size as i32, id, rank as i32) };
        if code != SUCCESS {
            let why = library.explain(code, std::ptr::null_mut());
            return Err(failed("make a group", [rank, size], &why));
        }
        let seconds = env::var("SMELT_NCCL_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
        let state = State { handle, issued: VecDeque::new(), progress: Instant::now() };
        let communicator = Arc::new(Self {
            rank,
            size,
            library,
            side,
            state: Mutex::new(state),
            failure: OnceLock::new(),
            limit: seconds.map_or(LIMIT, Duration::from_secs),
        });
        let watched: Arc<dyn Watched> = communicator.clone();
        gpu.watch(Arc::downgrade(&watched));
        Ok(communicator)
    }

    pub(super) fn gpu(&self) -> &Arc<Cuda> {
        self.side.gpu()
    }

    /// Issues what `calls` calls, to run after everything that the device was asked for so far. What it reads are
    /// `operands`, held until the device waits for the flight.
    pub(super) fn issue(
        self: &Arc<Self>,
        what: &str,
        operands: Vec<Tensor>,
        calls: impl FnOnce(&Calls) -> Code,
    ) -> Flight {
        let mut state = self.lock();
        self.side.gpu().bind();
        if let Err(error) = self.look_with(&mut state) {
            drop(state);
            error.raise();
        }
        assert!(!state.handle.is_null(), "{what}: the group was left");
        self.side.follow();
        let code = calls(&Calls { library: self.library, communicator: state.handle, stream: self.side.handle() });
        if code != SUCCESS {
            let why = self.library.explain(code, state.handle);
            let error = self.fail(&mut state, failed(what, [self.rank, self.size], &why));
            drop(state);
            // part of the calls may have been issued, and read the operands until NCCL has stopped; then this ends
            let _ = self.side.wait();
            error.raise();
        }
        let mark = Arc::new(self.side.mark());
        state.issued.push_back((Instant::now(), mark.clone()));
        Flight { communicator: self.clone(), mark, operands }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails if NCCL says so, or failed before.
    fn look_with(&self, state: &mut State) -> Result<(), DeviceError> {
        if let Some(failure) = self.failure.get() {
            return Err(failure.clone());
        }
        if state.handle.is_null() {
            return Ok(());
        }
        let mut found = SUCCESS;
        // SAFETY: the handle is alive, and nobody else uses it.
        let code = unsafe { (self.library.async_error)(state.handle, &raw mut found) };
        match if code == SUCCESS { found } else { code } {
            SUCCESS | IN_PROGRESS => Ok(()),
            code => {
                let why = self.library.explain(code, state.handle);
                Err(self.fail(state, failed("communicate", [self.rank, self.size], &why)))
            }
        }
    }

    /// Ends all operations on the device, and this group for all ranks. The first failure is the one that everybody
    /// gets.
    fn fail(&self, state: &mut State, error: DeviceError) -> DeviceError {
        // before the device goes on, so that whoever sees it go on sees the failure
        let error = self.failure.get_or_init(|| error).clone();
        state.issued.clear();
        let handle = mem::replace(&mut state.handle, std::ptr::null_mut());
        if !handle.is_null() {
            // SAFETY: the handle is alive, and nobody can use it any more. The group has failed whatever this says.
            unsafe { (self.library.abort)(handle) };
        }
        error
    }

    /// What the thread does each time: gives up when nothing has been done for too long.
    fn look_after(&self) {
        let mut state = self.lock();
        if state.handle.is_null() || self.look_with(&mut state).is_err() {
            return;
        }
        while let Some((issued, mark)) = state.issued.front() {
            if issued.elapsed() < OLD {
                return;
            }
            if !mark.is_reached() {
                break;
            }
            state.issued.pop_front();
            state.progress = Instant::now();
        }
        let Some((issued, _)) = state.issued.front() else { return };
        if (*issued).max(state.progress).elapsed() >= self.limit {
            let (rank, size, seconds) = (self.rank, self.size, self.limit.as_secs());
            let message = format!("rank {rank} of {size} has waited {seconds} s for another rank, in vain");
            self.fail(&mut state, DeviceError::temporary(message, HINT));
        }
    }

    /// Looks after the communicator until it has ended.
    pub(super) fn watch(self: &Arc<Self>) -> JoinHandle<()> {
        let weak = Arc::downgrade(self);
        let look = move || {
            while let Some(communicator) = Weak::upgrade(&weak) {
                communicator.look_after();
                if communicator.lock().handle.is_null() {
                    return;
                }
                drop(communicator);
                thread::park_timeout(PERIOD);
            }
        };
        thread::Builder::new().name("smelt-nccl".into()).spawn(look).expect("a thread starts")
    }

    /// This rank cannot go on, so the others must not wait for it.
    pub(super) fn abort(&self) {
        let message = format!("rank {} of {} left the group with a panic", self.rank, self.size);
        self.fail(&mut self.lock(), DeviceError::temporary(message, HINT));
    }

    /// Leaves the group when its operations are done. **Waits** for them, which ends at the latest when the thread
    /// gives up.
    pub(super) fn leave(&self) {
        let waited = self.side.wait();
        let mut state = self.lock();
        if waited.is_err() || self.look_with(&mut state).is_err() {
            return; // a device that failed has nothing to be tidied up; a group that failed was aborted
        }
        let handle = mem::replace(&mut state.handle, std::ptr::null_mut());
        if !handle.is_null() {
            // SAFETY: the handle is alive, and nobody can use it any more. Errors have nobody who could act on them.
            unsafe { (self.library.destroy)(handle) };
        }
    }
}

impl Watched for Communicator {
    fn look(&self) -> Result<(), DeviceError> {
        self.look_with(&mut self.lock())
    }
}

fn failed(what: &str, [rank, size]: [usize; 2], why: &str) -> DeviceError {
    DeviceError::temporary(format!("NCCL failed to {what} on rank {rank} of {size}: {why}"), HINT)
}

/// What a function of NCCL is called with.
pub(super) struct Calls<'a> {
    pub(super) library: &'a Library,
    pub(super) communicator: Handle,
    pub(super) stream: Handle,
}

/// An operation that was issued.
pub(super) struct Flight {
    communicator: Arc<Communicator>,
    mark: Arc<Mark>,
    /// Memory that is given back is used again in the order of the device's stream, so it is held until that waits.
    operands: Vec<Tensor>,
}

impl Transfer for Flight {
    fn finish(self: Box<Self>) -> Result<(), DeviceError> {
        if let Err(error) = self.mark.hold_back() {
            mem::forget(self.operands); // they may still be read
            return Err(error);
        }
        self.communicator.failure.get().cloned().map_or(Ok(()), Err)
    }
}
