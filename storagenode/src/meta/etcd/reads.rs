//! Reads of single keys, many in one request.
//!
//! For a linearizable read etcd's members agree on how far they are, which costs more than the read. Keys that are asked for
//! while a few requests are under way wait, and share the next one: a transaction of reads only, which all see one
//! revision. A request is sent after the last of its questions was asked, so nobody reads what is older than his question.

use std::collections::VecDeque;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{EtcdStore, MetaError, MetaStore, RangeRead, Txn};
use crate::meta::{KeyValue, Op, limits::MAX_TXN_OPS};

/// Requests at the same time. With fewer, a slow one would hold up everybody; with more, they would be smaller.
const UNDER_WAY: usize = 4;

type Answer = Result<Option<KeyValue>, MetaError>;

struct Question {
    key: Bytes,
    reply: oneshot::Sender<Answer>,
}

/// Keys that wait for a request.
#[derive(Default)]
pub(super) struct Reads {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Question>,
    under_way: usize,
}

impl Reads {
    /// Adds a question; whoever gets `true` must see to it that it is asked.
    fn add(&self, question: Question) -> bool {
        let mut state = self.state.lock();
        state.waiting.push_back(question);
        let asks = state.under_way < UNDER_WAY;
        state.under_way += usize::from(asks);
        asks
    }

    /// Questions for the next request; after none, whoever asked has stopped.
    fn next(&self) -> Vec<Question> {
        let mut state = self.state.lock();
        let count = state.waiting.len().min(MAX_TXN_OPS);
        let questions: Vec<Question> = state.waiting.drain(..count).collect();
        if questions.is_empty() {
            state.under_way -= 1;
        }
        questions
    }
}

/// Whoever asks for the others. Dropped in the middle, with its runtime, it leaves nobody waiting for ever.
struct Asking {
    store: EtcdStore,
    /// It is still counted as under way.
    counts: bool,
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut state = self.store.inner.reads.state.lock();
        state.under_way -= usize::from(self.counts);
        if self.counts && state.under_way == 0 {
            state.waiting.clear();
        }
    }
}

impl EtcdStore {
    pub(super) async fn shared_get(&self, key: &[u8]) -> Answer {
        let (reply, answer) = oneshot::channel();
        if self.inner.reads.add(Question { key: Bytes::copy_from_slice(key), reply }) {
            tokio::spawn(Asking { store: self.clone(), counts: true }.ask());
        }
        answer.await.unwrap_or_else(|_| Err(MetaError::Unavailable("this process is ending".into())))
    }
}

impl Asking {
    async fn ask(mut self) {
        loop {
            let mut questions = self.store.inner.reads.next();
            if questions.is_empty() {
                self.counts = false;
                return;
            }
            questions.retain(|question| !question.reply.is_closed());
            if !questions.is_empty() {
                self.store.answer(questions).await;
            }
        }
    }
}

impl EtcdStore {
    async fn answer(&self, questions: Vec<Question>) {
        let get = |question: &Question| Op::Get { key: question.key.clone() };
        let then = questions.iter().map(get).collect();
        let answers = self.txn(Txn { then, ..Txn::default() }).await;
        match answers {
            Ok(answers) => {
                for (question, read) in questions.into_iter().zip(answers.reads) {
                    let _ = question.reply.send(Ok(read));
                }
            }
            // Together they are too large, or one of them is what no store takes.
            Err(MetaError::Refused(_)) if questions.len() > 1 => {
                for Question { key, reply } in questions {
                    let page = self.range(RangeRead::key(&key)).await;
                    let _ = reply.send(page.map(|page| page.entries.into_iter().next()));
                }
            }
            Err(error) => {
                for question in questions {
                    let _ = question.reply.send(Err(error.clone()));
                }
            }
        }
    }
}
