//! Questions that services are asked side by side in one look: whether they are well, how many jobs
//! they have, whether they sleep.

use super::http::Fetcher;
use super::wait::{Event, Stop, Woken, wait};
use super::{health, host, jobs, server};
use crate::error::Result;
use crate::model::{ApiServer, Headers, Health, Healthy, JobProbe};
use indexmap::IndexMap;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Greatest number of threads with which asking begins. More are added only while these make too
/// little progress.
const AT_ONCE: usize = 16;

/// Time within which as many more questions have to be begun as there are threads; otherwise
/// threads are added.
const LATE: Duration = Duration::from_millis(2);

/// Greatest number of questions that go to one host and port at a time. A server with a short queue
/// drops more.
const FOR_ONE_SERVER: usize = 4;

/// A question to a service, with the headers that are sent along.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Question {
    Health(Health, Headers),
    Jobs(JobProbe, Headers),
    /// Asks whether the server was put to sleep.
    Sleep(ApiServer, Headers),
}

/// The answer to a question.
#[derive(Clone, Debug)]
pub enum QuestionReply {
    Health(Healthy),
    Jobs(jobs::Count),
    Sleep(server::Called<bool>),
}

/// Questions under way. Those that are answered at once share few threads, since a thread takes
/// longer than such an answer; those that hang get a thread each. A question that several services
/// have in common is asked once.
pub struct Questions {
    asked: HashMap<Question, usize>,
    shared: Arc<Asking>,
}

struct Asking {
    questions: Vec<Question>,
    fetcher: Fetcher,
    /// Longest time that each call may take.
    limit: Duration,
    stop: Stop,
    /// Numbers of the questions, in lanes that are each asked one after another.
    lanes: Vec<Vec<usize>>,
    /// Number of the first lane that no thread has begun.
    next: AtomicUsize,
    answers: Vec<QuestionAnswer>,
    answered: Arc<Event>,
}

/// The answer to a question and how long it took, or the panic of asking it; `None` while the
/// question is under way.
type QuestionAnswer = Mutex<Option<thread::Result<(QuestionReply, Duration)>>>;

impl Questions {
    /// Begins to ask questions. One that is still under way when nobody waits for it any more is
    /// left behind.
    pub fn begin(
        questions: impl IntoIterator<Item = Question>,
        limit: Duration,
        stop: &Stop,
    ) -> Result<Questions> {
        let mut asked: HashMap<Question, usize> = HashMap::new();
        let mut several: Vec<Question> = Vec::new();
        for question in questions {
            asked.entry(question).or_insert_with_key(|question| {
                several.push(question.clone());
                several.len() - 1
            });
        }
        let lanes = lanes(&several);
        let count = lanes.len();
        let shared = Arc::new(Asking {
            answers: several.iter().map(|_| Mutex::default()).collect(),
            questions: several,
            fetcher: Fetcher::new(limit),
            limit,
            stop: stop.clone(),
            lanes,
            next: AtomicUsize::new(0),
            answered: Event::new()?,
        });
        // More threads than processors would only take these away from the servers that are to
        // answer.
        let threads = count.min(host::processors().clamp(2, AT_ONCE));
        shared.clone().work(threads);
        if count > threads {
            let shared = shared.clone();
            thread::spawn(move || shared.hurry(threads));
        }
        Ok(Questions { asked, shared })
    }

    /// Returns the answer to a question and how long it took. Returns `None` if the question was
    /// not asked, or was not answered before the deadline or `stop`. Panics if asking the question
    /// did.
    pub fn answer(
        &self,
        question: &Question,
        stop: &Stop,
        deadline: Instant,
    ) -> Option<(QuestionReply, Duration)> {
        let shared = &self.shared;
        let asked = *self.asked.get(question)?;
        loop {
            let mut answer = shared.answers[asked].lock().unwrap_or_else(PoisonError::into_inner);
            match &*answer {
                Some(Ok(answer)) => return Some(answer.clone()),
                Some(Err(_)) => resume_unwind(answer.take()?.err()?),
                None => {}
            }
            drop(answer);
            if wait(&[shared.answered.fd()], stop, deadline) != Woken::Event {
                return None;
            }
            shared.answered.clear();
        }
    }
}

/// Sorts questions into lanes by the server that they ask, at most `FOR_ONE_SERVER` lanes for each,
/// so that no server has too many at once.
fn lanes(questions: &[Question]) -> Vec<Vec<usize>> {
    let mut by_server: IndexMap<String, Vec<Vec<usize>>> = IndexMap::new();
    for (number, question) in questions.iter().enumerate() {
        let lanes = by_server.entry(whom(question)).or_default();
        if lanes.len() < FOR_ONE_SERVER {
            lanes.push(vec![number]);
        } else if let Some(shortest) = lanes.iter_mut().min_by_key(|lane| lane.len()) {
            shortest.push(number);
        }
    }
    by_server.into_values().flatten().collect()
}

/// Returns the host and port that a question asks. A command is identified by its text, since it is
/// unknown which server it asks.
fn whom(question: &Question) -> String {
    let url = match question {
        Question::Health(Health::Tcp { host, port }, _) => return format!("{host}:{port}"),
        Question::Jobs(JobProbe::Command { text, .. }, _) => return text.clone(),
        Question::Health(Health::Http(url), _)
        | Question::Jobs(JobProbe::Json { url, .. } | JobProbe::Metric { url, .. }, _) => url,
        Question::Jobs(JobProbe::Server(server), _) | Question::Sleep(server, _) => &server.url,
    };
    let uri: Option<ureq::http::Uri> = url.parse().ok();
    let of = |uri: &ureq::http::Uri| {
        let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        Some(format!("{}:{}", uri.host()?, uri.port_u16().unwrap_or(default)))
    };
    uri.as_ref().and_then(of).unwrap_or_else(|| url.clone())
}

impl Asking {
    /// Begins threads that each go through one lane after another of those that no thread has
    /// begun.
    fn work(self: Arc<Asking>, threads: usize) {
        for _ in 0..threads {
            let shared = self.clone();
            thread::spawn(move || {
                while let Some(lane) = shared.lanes.get(shared.next.fetch_add(1, Ordering::SeqCst))
                {
                    lane.iter().for_each(|number| shared.attempt(*number));
                }
            });
        }
    }

    fn attempt(&self, number: usize) {
        let begun = Instant::now();
        let heard = catch_unwind(AssertUnwindSafe(|| self.ask(&self.questions[number])));
        let answer = heard.map(|heard| (heard, begun.elapsed()));
        *self.answers[number].lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        self.answered.set();
    }

    fn ask(&self, question: &Question) -> QuestionReply {
        let Asking { fetcher, limit, stop, .. } = self;
        match question {
            Question::Health(Health::Http(url), headers) => {
                QuestionReply::Health(health::of_reply(fetcher.get(url, headers)))
            }
            Question::Health(Health::Tcp { host, port }, _) => {
                QuestionReply::Health(health::tcp(host, *port, *limit))
            }
            Question::Jobs(probe, headers) => {
                QuestionReply::Jobs(jobs::count(probe, headers, fetcher, *limit, stop))
            }
            Question::Sleep(server, headers) => {
                QuestionReply::Sleep(server::is_asleep(server, headers, fetcher))
            }
        }
    }

    /// Doubles the number of threads each time that they have made too little progress within
    /// `LATE`.
    fn hurry(self: Arc<Asking>, mut threads: usize) {
        let mut begun = threads;
        while begun < self.lanes.len() {
            thread::sleep(LATE);
            let now = self.next.load(Ordering::SeqCst);
            if now < begun + threads {
                self.clone().work(threads);
                threads *= 2;
            }
            begun = now;
        }
    }
}
