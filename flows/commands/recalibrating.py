"""The command that recalibrates a model."""

import typer

from flows.commands.running import run_flow
from flows.commands.terminal import AsJson, Model, say

app = typer.Typer()


@app.command()
def recalibrate(model: Model, as_json: AsJson = False) -> None:
    """Fit the champion's probabilities to the labels that came since, without training, and release the
    result if the gate allows it."""
    from flows.recalibrate import recalibrate as flow

    result = run_flow(flow, model, by_hand=True)
    named = f"version {result['version'][:12]}: " if "version" in result else ""
    say(result, as_json, "\n".join([f"{model}: {named}{result['outcome']}",
                                    *(f"- {reason}" for reason in result["why"])]))
    if result["outcome"] not in ("passed", "released", "nothing to do"):
        raise typer.Exit(1)
