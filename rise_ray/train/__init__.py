"""From examples to a checkpoint: packing, the loss, and the ZeRO-3 loop under Ray Train."""
