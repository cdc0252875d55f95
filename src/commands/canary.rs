//! `gpuctl canary`: judges and tries a changed configuration of production.

use crate::canary::conduct::{Candidacy, Course, conduct, put_right, reset_budget, unlock};
use crate::cli::{CanaryCheckArgs, CanaryCommand, CandidateArgs};
use crate::config::Mode;
use crate::error::{Failure, Result};
use crate::exit::Answer;
use crate::lock;
use crate::report::{CanaryRunReport, CanaryStatusReport, DoneReport, VerdictReport, print};
use crate::session::Session;
use crate::world::host;

pub fn run(command: &CanaryCommand, session: Session) -> Result<Answer> {
    let service = session.config.canary()?.service.clone();
    let is_recovery = matches!(command, CanaryCommand::Recover);
    let session = if is_recovery { session } else { session.settled() };
    let config = &session.config.clone();
    let done = |told: String, session: &Session| {
        print(&DoneReport::new(&told), &session.form).map(|()| Answer::Yes)
    };
    match command {
        CanaryCommand::Check(CanaryCheckArgs { candidate: CandidateArgs { candidate, set } }) => {
            judge(&Candidacy::read(candidate.as_deref(), set, Mode::Predictive, config)?, &session)
        }
        CanaryCommand::Run(arguments) => {
            let mode = arguments.mode.map_or(config.canary()?.mode, Into::into);
            let CandidateArgs { candidate, set } = &arguments.candidate;
            let mut asked = Candidacy::read(candidate.as_deref(), set, mode, config)?;
            (asked.waived, asked.is_question) = (arguments.now, arguments.dry_run.dry_run);
            match asked.is_question {
                true => judge(&asked, &session),
                false => session.recorded("canary run", &asked.title(&service), |session| {
                    judge(&asked, &session)
                }),
            }
        }
        CanaryCommand::Status => {
            let report = CanaryStatusReport::new(config, &lock::look(config), host::now());
            print(&report?, &session.form).map(|()| Answer::Yes)
        }
        CanaryCommand::Recover => session.recorded("canary recover", &service, |session| {
            done(put_right(config, &session.stop, &session.progress)?, &session)
        }),
        CanaryCommand::ResetBudget => done(reset_budget(config, &session.stop)?, &session),
        CanaryCommand::Unlock(_) => done(unlock(config, &session.progress)?, &session),
    }
}

fn judge(asked: &Candidacy, session: &Session) -> Result<Answer> {
    let (prediction, course) = conduct(asked, &session.config, &session.stop, &session.progress)?;
    let verdict = VerdictReport::new(&prediction, asked, &course);
    let Course::Tried(outcome) = course else {
        return print(&verdict, &session.form).map(|()| Answer::from(prediction.passed));
    };
    let report = CanaryRunReport::new(verdict, &outcome);
    if let Some(failure) = outcome.failure() {
        return Err(failure.detail("canary", serde_json::to_value(&report).map_err(Failure::bug)?));
    }
    print(&report, &session.form).map(|()| Answer::from(outcome.has_passed()))
}
