"""The Prefect automations that send alerts to webhooks, chats and PagerDuty."""

from typing import Any

from jinja2 import Environment
from prefect.automations import AutomationCore, CallWebhook, EventTrigger, SendNotification
from prefect.blocks.core import Block
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.events.actions import ActionTypes, DoNothing
from prefect.events.schemas.automations import Posture

from contracts.core.errors import PerennialError
from flows.monitoring.alerts import AlertMessage, event_of
from registry.settings import ALERT_WEBHOOK

JSON = "{{ event.payload | tojson }}"
TITLE = "{{ event.payload.model }}: {{ event.payload.kind }}, {{ event.payload.state }}"
INCIDENT = """{% set alert = event.payload %}{
  "routing_key": "ROUTING_KEY",
  "event_action": "{{ 'resolve' if alert.state == 'over' else 'trigger' }}",
  "dedup_key": {{ (alert.model ~ " " ~ alert.kind ~ " " ~ alert.window) | tojson }},
  "payload": {"summary": {{ (alert.model ~ ": " ~ alert.kind) | tojson }},
              "source": {{ alert.model | tojson }}, "severity": "error",
              "custom_details": {{ alert | tojson }}}
}"""
TEXT = ("{{ event.payload.what }}\n\nSince {{ event.payload.since }}, version {{ event.payload.version[:12] "
        "}}.\n{{ event.payload.doing }}")


def to_webhook(url: str | None) -> None:
    """Post every alert to `url` as JSON from now on; with None, stop."""
    if url:
        if not url.startswith(("http://", "https://")):
            raise PerennialError(f"{ALERT_WEBHOOK} is {url!r}; it must be a webhook's address, "
                                 f"which begins with https:// or http://")
        return notify_through("webhook", json_webhook(url))
    with get_client(sync_client=True) as client:
        for automation in client.read_automations_by_name(_name("webhook")):
            client.delete_automation(automation.id)


def actions_for(alert: AlertMessage) -> list[ActionTypes]:
    """What sends this one alert to wherever alerts go now, by Prefect's server alone; where they go nowhere,
    its automation only shows among Prefect's events."""
    event = {"payload": event_of(alert).payload}

    def rendered(template: str) -> str:
        return Environment().from_string(template).render(event=event)

    actions: list[ActionTypes] = []
    with get_client(sync_client=True) as client:
        ours = [automation for automation in client.read_automations()
                if automation.name.startswith(_name(""))]
    for action in (action for automation in ours for action in automation.actions):
        if isinstance(action, CallWebhook):
            actions.append(action.model_copy(update={"payload": rendered(str(action.payload))}))
        elif isinstance(action, SendNotification):
            actions.append(action.model_copy(update={"subject": rendered(action.subject),
                                                     "body": rendered(action.body)}))
    return actions or [DoNothing()]


def to_pagerduty(routing_key: str, url: str = "https://events.pagerduty.com/v2/enqueue") -> None:
    """Open a PagerDuty incident for each alert, and resolve it when the alert ends;
    Prefect's own block for PagerDuty would open a second incident instead."""
    notify_through("pagerduty", json_webhook(url), INCIDENT.replace("ROUTING_KEY", routing_key))


def json_webhook(url: str) -> Webhook:
    return Webhook.model_validate({"url": url, "headers": {"Content-Type": "application/json"}})


def notify_through(name: str, block: Block, payload: str = JSON) -> None:
    """Send every alert to a Prefect block from now on: the template `payload`
    to a webhook, a text to a block for notifications."""
    block_id: Any = block.save(_block_name(name), overwrite=True)
    action = (CallWebhook(block_document_id=block_id, payload=payload) if isinstance(block, Webhook) else
              SendNotification(block_document_id=block_id, subject=TITLE, body=TEXT))
    trigger = EventTrigger(
        expect={"perennial.alert.raised", "perennial.alert.over"}, for_each={"prefect.resource.id"},
        match={"prefect.resource.id": "perennial.model.*"}, posture=Posture.Reactive, threshold=1)
    automation = AutomationCore(name=_name(name), trigger=trigger, actions=[action],
                                description="one alert a cause and one when it is over; the ledger decides")
    with get_client(sync_client=True) as client:
        existing = client.read_automations_by_name(automation.name)
        if existing:
            client.update_automation(existing[0].id, automation)
        else:
            client.create_automation(automation)


def _block_name(name: str) -> str:
    return f"perennial-alerts-{name}"


def _name(name: str) -> str:
    return f"perennial alerts: {name}"
