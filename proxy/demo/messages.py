"""One message for each provider, as an app of that provider would send it."""

import json
from email.message import EmailMessage

from attrs import frozen


@frozen
class Sample:
    """A message with the provider's fields, in the order in which an app sets them."""

    provider: str
    title: str
    fields: tuple[tuple[str, str], ...]

    def message(self) -> EmailMessage:
        """Build the message: what the app wrote before the move, unchanged."""
        message = EmailMessage()
        message["From"] = "Example Shop <shop@example.com>"
        message["To"] = "Jane Smith <jane@example.net>"
        message["Subject"] = f"Your order, sent the {self.title} way"
        message["Message-ID"] = f"<{self.provider}-demo@example.com>"
        for name, value in self.fields:
            message[name] = value
        message.set_content("Thank you for your order.\n\nhttps://example.com/orders/1\n")
        html = '<p>Thank you for your order.</p><p><a href="https://example.com/orders/1">Look at it</a></p>\n'
        message.add_alternative(html, subtype="html")
        return message


_SMTPAPI = {
    "category": ["order confirmation", "shop"],
    "unique_args": {"order": "1"},
    "filters": {"opentrack": {"settings": {"enable": 1}}, "clicktrack": {"settings": {"enable": 0}}},
}

SAMPLES = (
    Sample(
        "mailgun",
        "Mailgun",
        (
            ("X-Mailgun-Tag", "order confirmation"),
            ("X-Mailgun-Tag", "shop"),
            ("X-Mailgun-Track-Clicks", "no"),
            ("X-Mailgun-Variables", '{"order": "1"}'),
        ),
    ),
    Sample("mailjet", "Mailjet", (("X-Mailjet-Campaign", "order-confirmation"), ("X-Mailjet-TrackOpen", "0"))),
    Sample(
        "mandrill",
        "Mandrill",
        (("X-MC-Tags", "order confirmation, shop"), ("X-MC-Track", "opens"), ("X-MC-InlineCSS", "true")),
    ),
    Sample(
        "postmark",
        "Postmark",
        (("X-PM-Tag", "order confirmation"), ("X-PM-TrackOpens", "true"), ("X-PM-TrackLinks", "None")),
    ),
    Sample("sendgrid", "SendGrid", (("X-SMTPAPI", json.dumps(_SMTPAPI)),)),
)
