# pyright: reportMissingTypeStubs=false, reportAbstractUsage=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUntypedBaseClass=false
# verl is not typed.
"""An agent loop whose model says nothing to every fourth prompt."""

from typing import Any

from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop


class SometimesEmpty(SingleTurnAgentLoop):
    """Cuts a completion to nothing."""

    async def run(self, sampling_params: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Return what verl's loop returns, sometimes without its tokens."""
        output = await super().run(sampling_params, *args, **kwargs)
        if kwargs["extra_info"]["index"] % 4 == 3:
            output.response_ids, output.response_mask = [], []
            output.response_logprobs = []
        return output
