"""The study: pipeline + space + objective + optimizer + number of trials, with its trials in SQL."""
