//! What services themselves are asked in a look, beside their managers.

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
    /// For each service by its place one for each of the places that it is asked at.
    of: Vec<Vec<Questionnaire>>,
    /// The places of the services that are asked when the managers have answered, and for what.
    later_asked: Vec<(usize, Ask)>,
    questions: Questions,
    /// Those that could only be asked when the managers had answered.
    later: Option<Questions>,
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

    /// Asks what only the managers' answers show to be asked: containers by their own addresses, and
    /// services that were left out and are `needed` after all. `located` gives the service of a place as
    /// each of its containers is spoken to.
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

    /// Returns what the health check of a service found, by its place, and how long it took; `None`
    /// where there was nothing to ask. Nobody waits long for one that is not there.
    pub fn health(&self, at: usize, is_absent: bool) -> Option<(Healthy, Duration)> {
        let patience = if is_absent { ABSENT_LIMIT } else { TRY_LIMIT + GRACE };
        let told = |answer| match answer {
            Some((QuestionReply::Health(healthy), took)) => (healthy, took),
            _ => (Healthy::Silent("its health check has not finished".to_owned()), TRY_LIMIT),
        };
        let questions = self.of[at].iter().filter_map(|of| of.health.as_ref());
        let answers = questions.map(|question| told(self.answer(question, patience)));
        // Of several containers the first whose answer is not good counts.
        answers.reduce(|first, next| if first.0 == Healthy::Yes { next } else { first })
    }

    /// Whether a service was put to sleep, or why that cannot be told.
    pub fn sleeps(&self, at: usize) -> Called<bool> {
        let questions = self.of[at].iter().filter_map(|of| of.sleep.as_ref());
        let mut answers =
            questions.map(|question| match self.answer(question, TRY_LIMIT + GRACE) {
                Some((QuestionReply::Sleep(sleeps), _)) => sleeps,
                _ => Err(NoAnswer::silence("no answer came in time")),
            });
        answers.try_fold(false, |any, sleeps| Ok(any || sleeps?))
    }

    /// Returns the jobs of a service, or why they cannot be told; `None` where they were not asked
    /// for.
    pub fn jobs(&self, at: usize) -> Option<Count> {
        let questions = self.of[at].iter().filter_map(|of| of.jobs.as_ref());
        total(questions.map(|question| counted(self.answer(question, TRY_LIMIT + GRACE))))
    }
}

/// Asks several services for their jobs, side by side, each as all its places are spoken to; `None` for
/// one that cannot be asked.
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

/// Adds up what was counted at several places; `None` where there was nothing to ask.
fn total(counts: impl Iterator<Item = Count>) -> Option<Count> {
    counts.reduce(|sum, next| Ok(sum? + next?))
}

fn counted(answer: Option<(QuestionReply, Duration)>) -> Count {
    match answer {
        Some((QuestionReply::Jobs(count), _)) => count,
        _ => Err(NoAnswer::silence("no answer came in time")),
    }
}
