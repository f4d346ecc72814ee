"""A recipe that can be planned in seconds: a tiny student, two teachers of published architectures."""

RECIPE = """
student:
  preset: radio-test
  config: {num_hidden_layers: 2, max_img_size: 256}
  adaptor: {hidden_size: 24, num_inner_blocks: 0}
teachers:
  - {name: siglip2-g, kind: siglip2, source: google/siglip2-giant-opt-patch16-384, run_mode: native}
  - {name: sam3, kind: sam3, source: facebook/sam3, run_mode: mosaic}
partitions:
  - {name: low, sizes_px: [32, 64], probabilities: [1, 3], batch_size: 8}
  - {name: high, sizes_px: [128], batch_size: 2, teachers: [siglip2-g]}
schedule: {num_steps: 10}
"""
