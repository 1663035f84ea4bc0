"""The machine underneath: devices, hosts, memory, and what compiled programs do."""
