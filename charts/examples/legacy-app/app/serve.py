"""The app itself: something happens now and then, and somebody is told."""

import os
import signal
import sys
import time

import mail

# As the first process of a container it would not hear SIGTERM, and hold up the end of the pod, the proxy's with it.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
while True:
    mail.send("Something happened", "It is done.", "notice")
    time.sleep(float(os.environ["EVERY_SECONDS"]))
