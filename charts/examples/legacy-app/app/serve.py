"""The app itself: something happens now and then, and somebody is told."""

import os
import time

import mail

while True:
    mail.send("Something happened", "It is done.", "notice")
    time.sleep(float(os.environ["EVERY_SECONDS"]))
