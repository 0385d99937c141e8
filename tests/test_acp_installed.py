"""Are the stories with the Agent Client Protocol told here? They lie in tests/acp, and are left out where the library is not there."""

from importlib import metadata

import pytest


def test_agent_client_protocol_is_installed_so_the_stories_of_tests_acp_are_run():
    if not [*metadata.distributions(name="agent-client-protocol")]:
        pytest.skip("agent-client-protocol is not installed here: the stories of tests/acp are left out")
