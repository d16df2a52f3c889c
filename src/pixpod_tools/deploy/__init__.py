"""Creates and updates the RunPod Serverless endpoint that runs pixpod; never in the image."""
