"""How the app has sent its mail for years: SMTP to Mailgun, with Mailgun's fields."""

import os
import smtplib
from email.message import EmailMessage


def send(subject: str, text: str, tag: str) -> None:
    """Send one message to the reader."""
    message = EmailMessage()
    message["From"] = os.environ["MAIL_FROM"]
    message["To"] = os.environ["MAIL_TO"]
    message["Subject"] = subject
    message["X-Mailgun-Tag"] = tag
    message["X-Mailgun-Track-Clicks"] = "no"
    message.set_content(text)
    with smtplib.SMTP(os.environ["SMTP_HOST"], int(os.environ["SMTP_PORT"]), timeout=30) as client:
        client.login(os.environ["SMTP_USERNAME"], os.environ["SMTP_PASSWORD"])
        client.send_message(message)
    print(f"sent: {subject}")
