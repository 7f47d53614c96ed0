//! Readiness of many sockets, and a timer finer than a millisecond.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::Failure;

const TIMER: u64 = u64::MAX;
const EVENTS: usize = 256;

/// What a socket waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interest {
    Read,
    Write,
}

impl Interest {
    fn flags(self) -> EventFlags {
        match self {
            Self::Read => EventFlags::IN | EventFlags::RDHUP,
            Self::Write => EventFlags::OUT,
        }
    }
}

pub(super) struct Poll {
    epoll: OwnedFd,
    timer: OwnedFd,
    events: Vec<Event>,
}

impl std::fmt::Debug for Poll {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Poll").finish_non_exhaustive()
    }
}

impl Poll {
    pub(super) fn new() -> Result<Self, Failure> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN | EventFlags::ET)?;
        Ok(Self { epoll, timer, events: Vec::with_capacity(EVENTS) })
    }

    pub(super) fn add(&self, socket: impl AsFd, key: usize, interest: Interest) -> Result<(), Failure> {
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(key as u64), interest.flags())?)
    }

    pub(super) fn change(&self, socket: impl AsFd, key: usize, interest: Interest) -> Result<(), Failure> {
        Ok(epoll::modify(&self.epoll, socket, EventData::new_u64(key as u64), interest.flags())?)
    }

    /// Keys of the sockets that are ready, after at most `patience`. Empty also when the alarm went off.
    pub(super) fn wait(
        &mut self,
        patience: Option<Duration>,
        ready: &mut Vec<usize>,
    ) -> Result<bool, Failure> {
        let patience = patience.map(timespec);
        self.events.clear();
        epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), patience.as_ref())?;
        ready.clear();
        let keys = self.events.iter().map(|event| event.data.u64()).filter(|key| *key != TIMER);
        ready.extend(keys.filter_map(|key| usize::try_from(key).ok()));
        Ok(!self.events.is_empty())
    }

    /// Ends a wait at `due`.
    pub(super) fn alarm(&self, due: Instant) -> Result<(), Failure> {
        // Zero would switch the timer off.
        let after = due.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let value = Itimerspec { it_interval: timespec(Duration::ZERO), it_value: timespec(after) };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &value)?;
        Ok(())
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}
