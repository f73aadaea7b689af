"""What a user would write instead of Nightcap: short scripts around the captioner of a bundle, in fp32.

    python -m bench.peers.loader FOLDER OUTPUT BUNDLE

They have no lock, no journal and no rerun, and stop at the first bad image. All use the same bundle, the same batch
size, two threads or processes per stage as the machine has cores, and the way of decoding that their library offers.
"""
