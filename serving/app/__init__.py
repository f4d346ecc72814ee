"""The Gradio app: a checkpoint in a browser, on this machine or as a Space."""
