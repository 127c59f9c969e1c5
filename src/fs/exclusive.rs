//! Files and folders that this program makes: never through a link, never in place of something that was there.
