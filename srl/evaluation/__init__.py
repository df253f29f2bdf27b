"""What a policy can do: problems solved, answers judged, figures with intervals."""
