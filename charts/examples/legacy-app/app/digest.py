"""The app's nightly job."""

import mail

mail.send("The day in short", "Nothing special.", "digest")
