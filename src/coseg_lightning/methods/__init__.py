"""The methods of `conf/method`, each with its stages."""
