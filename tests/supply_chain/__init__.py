"""What the project is built on: declared, pinned for continuous integration, and licensed.

python -m tests.supply_chain     write constraints-3.11.txt and the page of licences again, in
                                 an environment with the extras test, parity, tpu and docs
"""
