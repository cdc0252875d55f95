//! `gpuctl canary`: a changed configuration of production, judged and tried.

use super::Session;
use crate::canary::candidate;
use crate::canary::conduct::{Candidacy, Course, conduct, put_right, reset_budget, unlock};
use crate::cli::{CanaryCommand, CandidateArgs};
use crate::config::Mode;
use crate::error::{Failure, Result};
use crate::exit::Answer;
use crate::lock;
use crate::report::{CanaryRunReport, CanaryStatusReport, DoneReport, VerdictReport, print};
use crate::world::host;

pub fn run(command: &CanaryCommand, session: Session) -> Result<Answer> {
    let service = session.config.canary()?.service.clone();
    let recovers = matches!(command, CanaryCommand::Recover);
    let session = if recovers { session } else { session.settled() };
    let done = |told: String, session: &Session| {
        print(&DoneReport::new(&told), &session.form).map(|()| Answer::Yes)
    };
    match command {
        CanaryCommand::Check(arguments) => {
            let asked = candidacy(&arguments.candidate, Mode::Predictive, &session)?;
            judge(&asked, &session)
        }
        CanaryCommand::Run(arguments) => {
            let mode = arguments.mode.map_or(session.config.canary()?.mode, Into::into);
            let asked = Candidacy {
                waived: arguments.now,
                is_question: arguments.dry_run.dry_run,
                ..candidacy(&arguments.candidate, mode, &session)?
            };
            let subject =
                format!("{service} ({}: {})", mode.name(), candidate::told(&asked.document));
            match asked.is_question {
                true => judge(&asked, &session),
                false => {
                    session.recorded("canary run", &subject, |session| judge(&asked, &session))
                }
            }
        }
        CanaryCommand::Status => {
            let held = lock::look(&session.config);
            print(&CanaryStatusReport::new(&session.config, &held, host::now())?, &session.form)?;
            Ok(Answer::Yes)
        }
        CanaryCommand::Recover => session.recorded("canary recover", &service, |session| {
            done(put_right(&session.config, &session.stop, &session.progress)?, &session)
        }),
        CanaryCommand::ResetBudget => done(reset_budget(&session.config, &session.stop)?, &session),
        CanaryCommand::Unlock(_) => done(unlock(&session.config, &session.progress)?, &session),
    }
}

fn candidacy(arguments: &CandidateArgs, mode: Mode, session: &Session) -> Result<Candidacy> {
    let canary = session.config.canary()?;
    let document = match &arguments.candidate {
        Some(path) => candidate::read(path),
        None => candidate::assigned(&arguments.set, &canary.bounds),
    }?;
    Ok(Candidacy { document, mode, waived: false, is_question: false })
}

fn judge(asked: &Candidacy, session: &Session) -> Result<Answer> {
    let (prediction, course) = conduct(asked, &session.config, &session.stop, &session.progress)?;
    let verdict = VerdictReport::new(&prediction, asked, &course);
    let Course::Tried(outcome) = course else {
        print(&verdict, &session.form)?;
        return Ok(Answer::from(prediction.passed));
    };
    let report = CanaryRunReport::new(verdict, &outcome);
    if let Some(failure) = outcome.failure() {
        return Err(failure.detail("canary", serde_json::to_value(&report).map_err(Failure::bug)?));
    }
    print(&report, &session.form)?;
    Ok(Answer::from(outcome.has_passed()))
}
