"""What more than one Octavo service needs: formats, messages, errors, the bus and telemetry. A leaf."""
