"""Cards of other things than a trained model: adapters, converted folders, data sets of features."""
