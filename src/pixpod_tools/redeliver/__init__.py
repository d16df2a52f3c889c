"""Sends dead letters again: the ends of jobs that their receivers have not got."""
