//! What services themselves are asked in a look, beside their managers.

use crate::config::Config;
use crate::error::Result;
use crate::model::{Headers, Health, Healthy, Service};
use crate::world::health::TRY_LIMIT;
use crate::world::http::NoAnswer;
use crate::world::jobs::Count;
use crate::world::questions::{Question, QuestionReply, Questions};
use crate::world::server::Called;
use crate::world::wait::Stop;
use std::net::IpAddr;
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
    /// Those that could only be asked when the managers had answered.
    later: Option<Questions>,
    begun: Instant,
    stop: &'a Stop,
}

/// The questions that a look has for a service.
struct Questionnaire {
    health: Option<Question>,
    /// The health check that asks its containers by their own addresses.
    by_address: Option<Health>,
    /// That of each container, once their addresses are known.
    addressed: Vec<Question>,
    headers: Headers,
    sleep: Option<Question>,
    jobs: Option<Question>,
}

impl Questionnaire {
    fn of(service: &Service, ask: Ask) -> Questionnaire {
        let headers = || service.headers.clone();
        let health = service.health.clone().filter(|_| ask != Ask::Nothing);
        let server = service.server.clone().filter(|it| it.can_sleep() && ask != Ask::Nothing);
        let (by_address, health) = match health {
            Some(health) if health.is_by_address() => (Some(health), None),
            health => (None, health),
        };
        Questionnaire {
            by_address,
            addressed: Vec::new(),
            headers: headers(),
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
        Ok(Inquiry { of, questions, later: None, begun, stop })
    }

    /// Asks containers by their own addresses, which their engine has told of each service.
    pub fn ask_by_address(&mut self, addresses: impl Fn(usize) -> Vec<IpAddr>) -> Result<()> {
        for (at, of) in self.of.iter_mut().enumerate() {
            let Some(check) = &of.by_address else { continue };
            let question = |address| Question::Health(check.at(address), of.headers.clone());
            of.addressed = addresses(at).into_iter().map(question).collect();
        }
        let questions: Vec<Question> =
            self.of.iter().flat_map(|of| of.addressed.iter().cloned()).collect();
        if !questions.is_empty() {
            self.later = Some(Questions::begin(questions, TRY_LIMIT, self.stop)?);
        }
        Ok(())
    }

    fn answer(&self, question: &Question, patience: Duration) -> Option<(QuestionReply, Duration)> {
        self.questions.answer(question, self.stop, self.begun + patience)
    }

    /// Returns what the health check of a service found, by its place, and how long it took; `None`
    /// where there was nothing to ask. Nobody waits long for one that is not there.
    pub fn health(&self, at: usize, is_absent: bool) -> Option<(Healthy, Duration)> {
        let patience = if is_absent { ABSENT_LIMIT } else { TRY_LIMIT + GRACE };
        let told = |answer| match answer {
            Some((QuestionReply::Health(healthy), took)) => (healthy, took),
            _ => (Healthy::Silent("its health check has not finished".to_owned()), TRY_LIMIT),
        };
        let of = &self.of[at];
        if let Some(question) = &of.health {
            return Some(told(self.answer(question, patience)));
        }
        // Of several containers the first whose answer is not good counts.
        let deadline = self.begun + patience;
        let later = self.later.as_ref();
        let answers = of.addressed.iter().filter_map(|question| {
            later.map(|later| told(later.answer(question, self.stop, deadline)))
        });
        answers.reduce(|first, next| if first.0 == Healthy::Yes { next } else { first })
    }

    /// Whether a service was put to sleep, or why that cannot be told.
    pub fn sleeps(&self, at: usize) -> Called<bool> {
        let Some(question) = &self.of[at].sleep else { return Ok(false) };
        match self.answer(question, TRY_LIMIT + GRACE) {
            Some((QuestionReply::Sleep(sleeps), _)) => sleeps,
            _ => Err(NoAnswer::silence("no answer came in time")),
        }
    }

    /// Returns the jobs of a service, or why they cannot be told; `None` where they were not asked
    /// for.
    pub fn jobs(&self, at: usize) -> Option<Count> {
        let question = self.of[at].jobs.as_ref()?;
        Some(counted(self.answer(question, TRY_LIMIT + GRACE)))
    }
}

/// Asks several services for their jobs, side by side; `None` for one that cannot be asked.
pub fn count_jobs(
    services: &[&Service],
    limit: Duration,
    stop: &Stop,
) -> Result<Vec<Option<Count>>> {
    let asked: Vec<Option<Question>> = services.iter().map(|service| for_jobs(service)).collect();
    let questions = Questions::begin(asked.iter().flatten().cloned(), limit, stop)?;
    let deadline = Instant::now() + limit + GRACE;
    let answers = asked
        .iter()
        .map(|it| Some(counted(questions.answer(it.as_ref()?, stop, deadline))))
        .collect();
    stop.check()?;
    Ok(answers)
}

fn counted(answer: Option<(QuestionReply, Duration)>) -> Count {
    match answer {
        Some((QuestionReply::Jobs(count), _)) => count,
        _ => Err(NoAnswer::silence("no answer came in time")),
    }
}
