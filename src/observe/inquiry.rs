//! Asks the services themselves in a look, side by side with their managers.

use crate::config::Config;
use crate::error::Result;
use crate::model::{Healthy, Service};
use crate::world::health::TRY_LIMIT;
use crate::world::http::NoAnswer;
use crate::world::jobs::Count;
use crate::world::questions::{Question, QuestionReply, Questions};
use crate::world::server::Called;
use crate::world::wait::Stop;
use std::time::{Duration, Instant};

/// Time that an answer may take beyond its own limit, for names that do not resolve.
const GRACE: Duration = Duration::from_secs(1);

/// How long a look waits for the health check of a service that does not run, which only a stranger
/// could answer.
const ABSENT_LIMIT: Duration = Duration::from_secs(1);

/// What a look asks a service itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Nothing, so that a caller that does not need the answer never waits for a service that
    /// hangs.
    Nothing,
    /// Whether the service is healthy, and whether it is awake.
    State,
    /// What `State` asks, and the number of the service's jobs.
    StateAndJobs,
}

impl Ask {
    /// Returns `Ask::State` if the state is wanted, or else `Ask::Nothing`.
    pub fn state_if(is_wanted: bool) -> Ask {
        if is_wanted { Ask::State } else { Ask::Nothing }
    }
}

/// The questions that a look has put to the services.
pub struct Inquiry<'a> {
    /// One entry for each address that a service is asked at, for each service by its place in the
    /// configuration.
    of: Vec<Vec<Questionnaire>>,
    /// The services that are asked only after the managers have answered, by their places in the
    /// configuration, and what each of them is asked.
    later_asked: Vec<(usize, Ask)>,
    questions: Questions,
    /// The questions that could be put only after the managers had answered, if there are any.
    later: Option<Questions>,
    begun: Instant,
    stop: &'a Stop,
}

/// The questions that a look puts to a service at one of its addresses.
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
    /// Puts the questions that need no answer of a manager. The limits on the answers count from
    /// `begun`, the beginning of the look.
    pub fn begin(
        config: &Config,
        asks: &dyn Fn(&Service) -> Ask,
        begun: Instant,
        stop: &'a Stop,
    ) -> Result<Inquiry<'a>> {
        let (mut of, mut later_asked) = (Vec::new(), Vec::new());
        for (at, service) in config.services.iter().enumerate() {
            let ask = asks(service);
            match service.is_by_address() {
                true => {
                    later_asked.push((at, ask));
                    of.push(Vec::new());
                }
                false => of.push(vec![Questionnaire::of(service, ask)]),
            }
        }
        let asked = of.iter().flatten().flat_map(Questionnaire::questions);
        let questions = Questions::begin(asked, TRY_LIMIT, stop)?;
        Ok(Inquiry { of, later_asked, questions, later: None, begun, stop })
    }

    /// Puts the questions that depend on the managers' answers: to containers at their own
    /// addresses, and to services that were left out and are `needed` after all. `located` returns
    /// copies of the service at a place in the configuration, one for each address that it is
    /// reached at.
    pub fn ask_later(
        &mut self,
        needed: impl Iterator<Item = usize>,
        located: impl Fn(usize) -> Vec<Service>,
    ) -> Result<()> {
        let mut questions = Vec::new();
        self.later_asked.extend(needed.map(|at| (at, Ask::State)));
        for (at, ask) in &self.later_asked {
            self.of[*at] =
                located(*at).iter().map(|service| Questionnaire::of(service, *ask)).collect();
            questions.extend(self.of[*at].iter().flat_map(Questionnaire::questions));
        }
        if !questions.is_empty() {
            self.later = Some(Questions::begin(questions, TRY_LIMIT, self.stop)?);
        }
        Ok(())
    }

    fn answer(&self, question: &Question, patience: Duration) -> Option<(QuestionReply, Duration)> {
        let deadline = self.begun + patience;
        let answer = |questions: &Questions| questions.answer(question, self.stop, deadline);
        answer(&self.questions).or_else(|| self.later.as_ref().and_then(answer))
    }

    /// Returns what the health check of the service at a place in the configuration found and how
    /// long it took, or `None` if there was nothing to ask. A service that does not run is not
    /// waited for long.
    pub fn health(&self, at: usize, is_absent: bool) -> Option<(Healthy, Duration)> {
        let patience = if is_absent { ABSENT_LIMIT } else { TRY_LIMIT + GRACE };
        let told = |answer| match answer {
            Some((QuestionReply::Health(healthy), took)) => (healthy, took),
            _ => (Healthy::Silent("its health check has not finished".to_owned()), TRY_LIMIT),
        };
        let questions = self.of[at].iter().filter_map(|of| of.health.as_ref());
        let answers = questions.map(|question| told(self.answer(question, patience)));
        // The first bad answer among several containers counts.
        answers.reduce(|first, next| if first.0 == Healthy::Yes { next } else { first })
    }

    /// Reports whether a service was put to sleep, or why that cannot be determined.
    pub fn sleeps(&self, at: usize) -> Called<bool> {
        let questions = self.of[at].iter().filter_map(|of| of.sleep.as_ref());
        let mut answers =
            questions.map(|question| match self.answer(question, TRY_LIMIT + GRACE) {
                Some((QuestionReply::Sleep(sleeps), _)) => sleeps,
                _ => Err(NoAnswer::silence("no answer came in time")),
            });
        answers.try_fold(false, |any, sleeps| Ok(any || sleeps?))
    }

    /// Returns the number of a service's jobs, or why it cannot be determined; `None` if the
    /// service was not asked for it.
    pub fn jobs(&self, at: usize) -> Option<Count> {
        let questions = self.of[at].iter().filter_map(|of| of.jobs.as_ref());
        total(questions.map(|question| counted(self.answer(question, TRY_LIMIT + GRACE))))
    }
}

/// Counts the jobs of several services, side by side. Each service is given as copies, one for each
/// address that it is reached at. The count of a service that cannot be asked is `None`.
pub fn count_jobs(
    services: &[Vec<Service>],
    limit: Duration,
    stop: &Stop,
) -> Result<Vec<Option<Count>>> {
    let asked: Vec<Vec<Question>> =
        services.iter().map(|places| places.iter().filter_map(for_jobs).collect()).collect();
    let questions = Questions::begin(asked.iter().flatten().cloned(), limit, stop)?;
    let deadline = Instant::now() + limit + GRACE;
    let answer = |question| counted(questions.answer(question, stop, deadline));
    let answers = asked.iter().map(|of| total(of.iter().map(answer))).collect();
    stop.check()?;
    Ok(answers)
}

/// Adds up the jobs that were counted at several addresses; `None` if there was nothing to ask.
fn total(counts: impl Iterator<Item = Count>) -> Option<Count> {
    counts.reduce(|sum, next| Ok(sum? + next?))
}

fn counted(answer: Option<(QuestionReply, Duration)>) -> Count {
    match answer {
        Some((QuestionReply::Jobs(count), _)) => count,
        _ => Err(NoAnswer::silence("no answer came in time")),
    }
}
