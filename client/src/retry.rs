//! One call, tried at one node after another: bounded in attempts and in time, and never repeated when that might do
//! it twice.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cairn_proto::v1::ErrorCode;

use crate::endpoints::{Node, Pool};
use crate::error::{Effect, Error, Result};
use crate::options::Limits;

/// When a call may be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Doing it twice is the same as doing it once.
    Safe,
    /// Only if the failed attempt has changed nothing.
    IfUnchanged,
}

/// What one call has tried so far.
pub(crate) struct Attempts<'a> {
    pool: &'a Pool,
    limits: &'a Limits,
    deadline: Instant,
    /// Pauses made, each after all nodes that are worth asking were asked.
    rounds: u32,
    /// Nodes that failed since the last pause.
    failed: Vec<usize>,
    /// Nodes that waiting will not mend.
    hopeless: Vec<usize>,
    current: usize,
    /// The last refusal that gave a reason: worth more than silence when time runs out.
    told: Option<Error>,
}

impl<'a> Attempts<'a> {
    pub fn new(pool: &'a Pool, limits: &'a Limits) -> Self {
        let deadline = Instant::now() + limits.call_timeout;
        let (failed, hopeless) = (Vec::new(), Vec::new());
        Self { pool, limits, deadline, rounds: 0, failed, hopeless, current: 0, told: None }
    }

    /// The node to try now.
    pub fn begin(&mut self) -> Arc<Node> {
        let avoid: Vec<usize> = self.failed.iter().chain(&self.hopeless).copied().collect();
        let (index, node) = self.pool.pick(&avoid);
        self.current = index;
        node
    }

    /// Time that the attempt which begins now may take.
    pub fn attempt_timeout(&self) -> Duration {
        self.limits.attempt_timeout.min(self.deadline.saturating_duration_since(Instant::now()))
    }

    /// A transfer moved on: its time counts from now. Rounds still count from its beginning.
    pub fn extend(&mut self) {
        self.deadline = Instant::now() + self.limits.call_timeout;
    }

    /// Takes note of a failed attempt, and waits until the next may begin; gives the error back if there is to be none.
    pub async fn failed(&mut self, node: &Node, error: Error, may_repeat: bool) -> Result<()> {
        let to_blame = blames_node(&error);
        if to_blame {
            node.failed();
            self.failed.push(self.current);
        }
        if error.is_permanent() {
            self.hopeless.push(self.current);
        }
        let none_is_hopeful = (0..self.pool.len()).all(|index| self.hopeless.contains(&index));
        let mut nodes = 0..self.pool.len();
        let all_failed = nodes.all(|index| self.failed.contains(&index) || self.hopeless.contains(&index));
        let hopeless = !(error.is_transient() || error.is_permanent() || may_repeat_after_timeout(&error));
        if !may_repeat || hopeless || none_is_hopeful {
            return Err(error);
        }
        let untried = to_blame && !all_failed;
        if !untried {
            self.rounds += 1;
        }
        if !may_repeat_after_timeout(&error) {
            self.told = Some(error.clone());
        }
        if self.rounds >= self.limits.attempts {
            return Err(self.told.take().unwrap_or(error));
        }
        // Another node can be asked at once; the same one, or a cluster that is busy, needs a pause.
        let pause = if untried { Duration::ZERO } else { self.backoff() };
        if Instant::now() + pause >= self.deadline {
            return Err(self.told.take().unwrap_or(error));
        }
        tracing::debug!(node = %node.name, code = error.code_name(), %error, pause_ms = pause.as_millis() as u64, "trying again");
        if !untried {
            self.failed.clear();
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    fn backoff(&self) -> Duration {
        let doubled = self.limits.first_backoff.saturating_mul(1 << self.rounds.saturating_sub(1).min(16));
        let longest = doubled.min(self.limits.max_backoff);
        longest.mul_f64(rand::random_range(0.5..=1.0))
    }
}

/// Runs `call` at one node after another until it works or must not be repeated.
pub(crate) async fn run<T, F, Fut>(pool: &Pool, limits: &Limits, repeat: Repeat, mut call: F) -> Result<T>
where
    F: FnMut(Arc<Node>) -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let mut attempts = Attempts::new(pool, limits);
    loop {
        let node = attempts.begin();
        let outcome = within(attempts.attempt_timeout(), call(Arc::clone(&node))).await;
        match outcome {
            Ok(answer) => {
                node.worked();
                return Ok(answer);
            }
            Err(error) => {
                let error = error.at(&node.name);
                let may_repeat = repeat == Repeat::Safe || error.effect() != Effect::Unknown;
                attempts.failed(&node, error, may_repeat).await?;
            }
        }
    }
}

/// Gives up on a node that does not answer.
pub(crate) async fn within<T>(limit: Duration, call: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(limit, call).await {
        Ok(outcome) => outcome,
        Err(_) => Err(no_answer(limit)),
    }
}

pub(crate) fn no_answer(limit: Duration) -> Error {
    Error::new(
        ErrorCode::DeadlineExceeded,
        Effect::Unknown,
        format!("the node did not answer within {:.1} s", limit.as_secs_f32()),
        "look at the cluster with `cairn status`, and allow more time with --timeout",
    )
}

/// The node itself is in trouble, as opposed to the cluster or the request.
fn blames_node(error: &Error) -> bool {
    let quiet = may_repeat_after_timeout(error);
    error.effect() == Effect::NotSent || error.code() == ErrorCode::Unavailable || quiet
}

/// A node that hangs; another may not.
fn may_repeat_after_timeout(error: &Error) -> bool {
    error.code() == ErrorCode::DeadlineExceeded
}
