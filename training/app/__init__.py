"""The Gradio app: look at a checkpoint from a browser, on this machine or as a Space."""
