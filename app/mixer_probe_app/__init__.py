"""What the pages share: which networks and images are chosen, what has been calculated, how it is
shown. Nothing here measures anything."""
