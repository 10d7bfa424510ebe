"""What every room uses: files, settings, the Hub, the command line."""
