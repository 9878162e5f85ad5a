"""Graph passes, one file each; `fxquant.api` lists them in order."""
