//! `monoquant-report.json` of an output: from whoever put the folder there.

use monoquant::publish::occupant;
use monoquant::publish::occupant::Occupant;
use monoquant::report;
use monoquant::run::verify;
use monoquant::stage::export::Overwrite;

use super::folder::Folder;
use super::{Target, findings};

/// The text of a report. What is read is written again as it was; a folder with it is verified, and looked at as something that is
/// to be replaced: it stays as it is.
pub struct Report(Folder);

const WEIGHTS: &[u8] = b"weights";

impl Target for Report {
    fn new() -> Self {
        let folder = Folder::empty();
        folder.write("model/model.safetensors", WEIGHTS);
        Self(folder)
    }

    fn try_on(&self, input: &[u8]) {
        self.0.write(&format!("model/{}", report::FILE_NAME), input);
        let (folder, path) = (self.0.path("model"), self.0.path("model").join(report::FILE_NAME));
        let read = report::read(&path);
        match &read {
            Ok(report) => {
                let written = serde_json::to_vec(report).expect("a report can be written");
                let again: report::Report = serde_json::from_slice(&written).expect("a report");
                assert_eq!(again, *report);
            }
            Err(failure) => findings::check_failure(failure),
        }
        for overwrite in [Overwrite::Replace, Overwrite::Refuse] {
            let found = occupant::check(&folder, overwrite);
            match found {
                Ok(occupant) => {
                    assert!(matches!(occupant, Occupant::Folder(..)) && overwrite == Overwrite::Replace);
                }
                Err(failure) => findings::check_failure(&failure),
            }
        }
        match verify::verify(&folder) {
            Ok(_) => assert!(read.is_ok()),
            Err(failure) => findings::check_failure(&failure),
        }
        assert_eq!(std::fs::read(folder.join("model.safetensors")).expect("the weights"), WEIGHTS);
        assert_eq!(std::fs::read(path).expect("the report"), input);
    }
}
