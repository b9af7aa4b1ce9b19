"""What any program needs: flags, signals, files, progress, and TensorFlow under one name."""
