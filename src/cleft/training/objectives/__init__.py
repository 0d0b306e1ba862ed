"""From features of images and texts to what each method is trained by."""
