//! Programs that are told to end: in order the first time, at once the second.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Result, bail};
use tokio::signal::unix::{SignalKind, signal};

/// The exit code of a program that Ctrl-C ended, as a shell tells it.
pub const INTERRUPTED: u8 = 130;

/// Asks whoever waits to give up. Clones are one and the same.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.is_set() { bail!("interrupted") } else { Ok(()) }
    }
}

impl Stop {
    /// From now on the first SIGINT or SIGTERM asks for an orderly end, the second ends the process at once. SIGHUP and SIGQUIT
    /// ask for an orderly end, however often they come: a terminal that is closed sends several.
    pub fn on_signals(program: &'static str) -> Result<Self> {
        let stop = Self::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let inside = runtime.enter();
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let (mut hangup, mut quit) = (signal(SignalKind::hangup())?, signal(SignalKind::quit())?);
        drop(inside);
        let asked = stop.clone();
        let wait = async move {
            let mut told = false;
            loop {
                let counts = tokio::select! {
                    _ = interrupt.recv() => true,
                    _ = terminate.recv() => true,
                    _ = hangup.recv() => false,
                    _ = quit.recv() => false,
                };
                if counts && told {
                    eprintln!("{program}: told to end a second time: ending at once");
                    std::process::exit(INTERRUPTED.into());
                }
                told |= counts;
                asked.set();
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(move || runtime.block_on(wait))?;
        Ok(stop)
    }
}
