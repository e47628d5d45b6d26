"""The SMTP front door. Owns client sessions; hands whole messages to intake; knows nothing of delivery."""
