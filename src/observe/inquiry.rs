//! What services themselves are asked in a look, beside their managers.

use crate::config::Config;
use crate::error::Result;
use crate::model::{Healthy, Service};
use crate::world::health::TRY_LIMIT;
use crate::world::http::NoAnswer;
use crate::world::jobs::Count;
use crate::world::questions::{Question, QuestionReply, Questions};
use crate::world::wait::Stop;
use std::time::{Duration, Instant};

/// An answer may take this much beyond its own limit, for names that do not resolve.
const GRACE: Duration = Duration::from_secs(1);

/// A stranger may take this long to answer for a service that is not there.
const ABSENT_LIMIT: Duration = Duration::from_secs(1);

/// What a service itself is asked in a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Who hangs is waited for by nobody who does not need its answer.
    Nothing,
    /// Whether it is well, and awake.
    State,
    /// Its jobs, too.
    StateAndJobs,
}

impl Ask {
    /// Asks for its state, or for nothing.
    pub fn state_if(is_wanted: bool) -> Ask {
        if is_wanted { Ask::State } else { Ask::Nothing }
    }
}

/// The questions to the services in a look, under way.
pub struct Inquiry<'a> {
    of: Vec<Questionnaire>,
    questions: Questions,
    begun: Instant,
    stop: &'a Stop,
}

/// The questions that a look has for a service.
struct Questionnaire {
    health: Option<Question>,
    sleep: Option<Question>,
    jobs: Option<Question>,
}

impl Questionnaire {
    fn of(service: &Service, ask: Ask) -> Questionnaire {
        let headers = || service.headers.clone();
        let health = service.health.clone().filter(|_| ask != Ask::Nothing);
        let server = service.server.clone().filter(|it| it.can_sleep() && ask != Ask::Nothing);
        Questionnaire {
            health: health.map(|check| Question::Health(check, headers())),
            sleep: server.map(|server| Question::Sleep(server, headers())),
            jobs: for_jobs(service).filter(|_| ask == Ask::StateAndJobs),
        }
    }

    fn questions(&self) -> impl Iterator<Item = Question> {
        [&self.health, &self.sleep, &self.jobs].into_iter().flatten().cloned()
    }
}

fn for_jobs(service: &Service) -> Option<Question> {
    Some(Question::Jobs(service.jobs.clone()?, service.headers.clone()))
}

impl<'a> Inquiry<'a> {
    pub fn begin(
        config: &Config,
        asks: &dyn Fn(&Service) -> Ask,
        begun: Instant,
        stop: &'a Stop,
    ) -> Result<Inquiry<'a>> {
        let of = |service: &Service| Questionnaire::of(service, asks(service));
        let of: Vec<Questionnaire> = config.services.iter().map(of).collect();
        let asked = of.iter().flat_map(Questionnaire::questions);
        let questions = Questions::begin(asked, TRY_LIMIT, stop)?;
        Ok(Inquiry { of, questions, begun, stop })
    }

    fn answer(&self, question: &Question, patience: Duration) -> Option<(QuestionReply, Duration)> {
        self.questions.answer(question, self.stop, self.begun + patience)
    }

    /// Returns what the health check of a service found, by its place, and how long it took; `None`
    /// where there was nothing to ask. Nobody waits long for one that is not there.
    pub fn health(&self, at: usize, is_absent: bool) -> Option<(Healthy, Duration)> {
        let patience = if is_absent { ABSENT_LIMIT } else { TRY_LIMIT + GRACE };
        match self.answer(self.of[at].health.as_ref()?, patience) {
            Some((QuestionReply::Health(healthy), took)) => Some((healthy, took)),
            _ => {
                let late = "its health check has not finished".to_owned();
                Some((Healthy::Silent(late), TRY_LIMIT))
            }
        }
    }

    /// Whether a service says that it was put to sleep.
    pub fn sleeps(&self, at: usize) -> bool {
        let question = self.of[at].sleep.as_ref();
        let answer = question.and_then(|question| self.answer(question, TRY_LIMIT + GRACE));
        matches!(answer, Some((QuestionReply::Sleep(true), _)))
    }

    /// Returns the jobs of a service, or why they cannot be told; `None` where they were not asked
    /// for.
    pub fn jobs(&self, at: usize) -> Option<Count> {
        let question = self.of[at].jobs.as_ref()?;
        Some(counted(self.answer(question, TRY_LIMIT + GRACE)))
    }
}

fn counted(answer: Option<(QuestionReply, Duration)>) -> Count {
    match answer {
        Some((QuestionReply::Jobs(count), _)) => count,
        _ => Err(NoAnswer { why: "no answer came in time".to_owned(), is_silence: true }),
    }
}
