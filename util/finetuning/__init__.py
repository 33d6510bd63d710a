"""Fine-tuning: compared methods, fits, objectives, predictors, scores, reports."""
