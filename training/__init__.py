"""From photos and phrases to a trained model."""
