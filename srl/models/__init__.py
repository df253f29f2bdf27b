"""Loads models, merges adapters, attends over prefix trees and scores completions."""
