"""What a user would write instead of Nightcap: short scripts around the captioner of a bundle.

    python -m bench.peers.loader FOLDER OUTPUT BUNDLE

They have no lock, no journal and no rerun, and stop at the first bad image. All use the captioner of this package
with its packed decoder and its beam search, in fp32 on the CPU. With C cores:

    one_by_one      1 process decodes with Pillow, and captions single images with C threads of PyTorch.
    loader          C processes decode with Pillow, 1 captions batches of 32 with C threads of PyTorch.
    ray_images      A Ray cluster of C CPUs: C / 2 actors (at least 1) caption batches of 32, each with 1 thread of
                    PyTorch. Ray Data's tasks read and decode on the other CPUs.
    daft_udf        1 process: Daft's threads decode, a UDF captions batches of 32 with C threads of PyTorch.

The peer of `nightcap serve` computes in the same precision as it:

    plain_handler   1 process: up to 40 threads of FastAPI decode and caption, each with 1 thread of PyTorch.
"""
